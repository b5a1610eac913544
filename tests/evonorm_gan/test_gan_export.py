"""Exported generators give the generator's images, at other batch sizes than the traced one."""

from __future__ import annotations

import onnxruntime
import pytest
import torch

from evonorm_gan import export
from evonorm_gan.models import Generator
from evonorm_gan.models.layers import SelfAttention
from evonorm_gan.sampling import latents, standing_statistics
from evonorm_runs.errors import UserError

NORMS = ["EvoNormS0", "EvoNormB0", "GN-ReLU"]


def generator(norm, resolution=32, blocks=None):
    """In training mode, as far from its initialisation as a trained one."""
    torch.manual_seed(0)
    G = Generator(resolution, 8, 10, norm).train()
    if blocks:
        G.blocks = G.blocks[:blocks]
        G.attention, G.attention_after = SelfAttention(G.last.in_channels), 0
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith((".v", "gain")):
                parameter.add_(torch.randn_like(parameter) + 0.5)
    standing_statistics(G, 1, 4, seed=0)
    return G


def compare(G, exported, difference):
    """At several batch sizes, with G, which the export leaves in training."""
    assert G.training
    G.eval()
    for num in (1, 2, 5):
        z, y = latents(num, G.dim_z, 10, seed=7)
        with torch.no_grad():
            expected = G(z, y)
        torch.testing.assert_close(exported(z, y), expected, rtol=0, atol=1e-4)
        assert expected.std() > 0.1
    assert 0 <= difference <= 1e-4
    G.train()(*latents(3, G.dim_z, 10, seed=1)).sum().backward()
    assert G.last.parametrizations.weight.original.grad.abs().sum() > 0


@pytest.mark.parametrize("norm, resolution", [(n, 32) for n in NORMS] + [("EvoNormS0", 64)])
def test_torchscript(norm, resolution, tmp_path):
    G = generator(norm, resolution)
    state = {k: v.clone() for k, v in G.state_dict().items()}
    path = tmp_path / "G.pt"
    difference = export.export_torchscript(G, path)
    for key, value in G.state_dict().items():
        assert torch.equal(value, state[key]), key
    compare(G, torch.jit.load(path), difference)
    assert list(tmp_path.iterdir()) == [path]


def load_onnx(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type) for i in session.get_inputs()] == [
        ("z", "tensor(float)"),
        ("y", "tensor(int64)"),
    ]
    assert [i.name for i in session.get_outputs()] == ["images"]
    run = lambda z, y: session.run(None, {"z": z.numpy(), "y": y.numpy()})[0]  # noqa: E731
    return lambda z, y: torch.from_numpy(run(z, y))


# Two blocks, the attention and the tail have all kinds of sites, and export in less time.
@pytest.mark.parametrize("norm", NORMS)
def test_onnx(norm, tmp_path):
    G = generator(norm, blocks=2)
    difference = export.export_onnx(G, tmp_path / "G.onnx")
    compare(G, load_onnx(tmp_path / "G.onnx"), difference)


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_wrong_images_are_not_written(wrong, tmp_path, monkeypatch):
    load = torch.jit.load

    def load_with_a_fault(file):
        exported = load(file)
        return lambda z, y: exported(z, y) + wrong

    monkeypatch.setattr(torch.jit, "load", load_with_a_fault)
    with pytest.raises(UserError, match="not written: its images would differ by (1.0e-03|nan)"):
        export.export_torchscript(generator("EvoNormS0", blocks=1), tmp_path / "G.pt")
    assert list(tmp_path.iterdir()) == []


def test_old_opset(tmp_path):
    with pytest.raises(UserError, match="opset is 17"):
        export.export_onnx(generator("GN-ReLU", blocks=1), tmp_path / "G.onnx", opset=17)
