"""The import of released weights by its command: what a stranger types, and what goes wrong."""

from __future__ import annotations

import sys

import pytest
import torch

from evonorm_gan.checkpoint import load_generator
from evonorm_gan.sampling import standing_statistics

port = pytest.importorskip("pytorch_pretrained_biggan")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A model of the port, and its weights in a file, as they are released but for the width."""
    torch.manual_seed(0)
    model = port.BigGAN(port.BigGANConfig(channel_width=8))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    for _ in range(3):  # of the power iteration
        model(torch.randn(1, 128), torch.eye(1000)[:1], 1.0)
    model.eval()
    file = tmp_path_factory.mktemp("released") / "pytorch_model.bin"
    torch.save(model.state_dict(), file)
    return model, file


def test_checkpoint_gives_the_ports_images(released, call):
    model, file = released
    output = file.with_suffix(".pth")
    told = f"{output}: BigGAN-deep, 128x128, 1000 classes, truncation 0.4\n"
    assert call(file, "--truncation", 0.4) == (0, told, "")

    G, cfg, classes, step = load_generator(output)
    assert (cfg.MODEL.NORM, cfg.MODEL.G_CH, cfg.TEST.TRUNCATION, step) == ("BN-ReLU", 8, 0.4, 0)
    assert cfg.TEST.TRUNCATE_BY == "scale"
    assert len(set(classes)) == 1000
    assert (classes[0], classes[207]) == ("tench", "golden retriever")
    # What the sampling and evaluation tools do first must leave the imported statistics.
    test = cfg.TEST
    standing_statistics(
        G, test.STANDING_BATCHES, test.BATCH_SIZE, 0, test.TRUNCATION, test.TRUNCATE_BY
    )
    z, y = torch.randn(2, 128), torch.tensor([207, 3])
    with torch.no_grad():
        expected = model(z, torch.eye(1000)[y], 0.4)
        assert (G(z, y) - expected).abs().max() < 1e-5
    assert expected.std() > 0.05

    before = output.read_bytes()
    refusal = f"{output} exists: name another file by -o, or delete it first"
    assert call(file) == (2, "", f"import_biggan.py: {refusal}\n")
    assert output.read_bytes() == before


def test_mistakes_are_one_line(released, call, tmp_path):
    _, file = released
    torch.save({"model": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "broken.bin").write_bytes(b"PK\x03\x04 cut off")
    torch.save({"f": sys.exit}, tmp_path / "code.bin")
    to = ("-o", tmp_path / "out.pth")
    cases = [
        ((tmp_path / "absent.bin", *to), "No such file"),
        ((tmp_path / "broken.bin", *to), "broken.bin: damaged, or not a checkpoint"),
        ((tmp_path / "code.bin", *to), "loading it could run code"),
        ((tmp_path / "other.pth", *to), "other.pth: not the state dict of a pytorch-pretrained-b"),
        ((file, *to, "--truncation", 2), "truncation is 2.0, but should be more than 0 and at"),
        ((file, "-o", tmp_path / "no" / "folder" / "out.pth"), "No such file or directory"),
    ]
    for arguments, line in cases:
        status, out, err = call(*arguments)
        assert (status, out) == (2, ""), arguments
        assert err.startswith("import_biggan.py: ") and line in err and err.count("\n") == 1
    assert not list(tmp_path.glob("out.pth*"))
