"""tools/sample_gan.py on checkpoints of small untrained generators."""

from __future__ import annotations

import numpy as np
import pytest
import sample_gan as tool
import torch
from PIL import Image

from evonorm_gan import export, sampling
from evonorm_gan.checkpoint import load_generator, write_checkpoint
from evonorm_gan.config import finish_config, get_cfg
from evonorm_gan.models import build_generator

CLASSES = ["cat", "dog", "owl"]
SIDE, STEP, GAP = 32, 34, 2


@pytest.fixture(scope="module", params=["EvoNormS0", "BN-ReLU"])
def checkpoint(request, tmp_path_factory):
    """With other weights in `generator` than in `ema`."""
    settings = {
        "DEVICE": "cpu",
        "MODEL.RESOLUTION": 32,
        "MODEL.G_CH": 8,
        "MODEL.NUM_CLASSES": 3,
        "MODEL.DIM_Z": 16,
        "MODEL.NORM": request.param,
        "TEST.BATCH_SIZE": 8,
        "TEST.STANDING_BATCHES": 2,
    }
    cfg = finish_config(get_cfg(), [str(x) for pair in settings.items() for x in pair])
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append(build_generator(cfg).state_dict())
    data = {"step": 7, "config": cfg.dump(), "classes": CLASSES}
    path = tmp_path_factory.mktemp("run") / "model_0000007.pth"
    write_checkpoint(path, {**data, "ema": states[0], "generator": states[1]})
    (path.parent / "last_checkpoint").write_text(path.name)
    return path


def test_imported_weights_get_their_own_z(checkpoint, tmp_path, call):
    """An imported file says how z is truncated; one of before there was that key is the port's."""
    data = torch.load(checkpoint, weights_only=True)
    del data["generator"]
    data["config"] = "\n".join(x for x in data["config"].splitlines() if "TRUNCATE_BY" not in x)
    imported, out = tmp_path / "imported.pth", tmp_path / "out.png"
    torch.save(data, imported)
    cases = {
        (imported,): 0.440,
        (imported, "--truncate-by", "resample"): 0.284,
        (checkpoint,): 0.284,
        (checkpoint, "--truncate-by", "scale"): 0.440,
    }
    seen = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: seen.append(args[0]) if hasattr(module, "dim_z") else None
    )
    try:
        for arguments, width in cases.items():
            answer = call("grid", *arguments, "-o", out, "--truncation", 0.5, "--per-class", 50)
            assert answer[0] == 0, answer
            assert torch.cat(seen).std().item() == pytest.approx(width, rel=0.03), arguments
            seen.clear()
            out.unlink()
    finally:
        hook.remove()


def draw(checkpoint, z, y, truncation=None, batches=2, ema=True):
    """The images (N, 32, 32, 3) that should be in a picture."""
    G = load_generator(checkpoint, ema)[0]
    sampling.standing_statistics(G, batches, 8, 0, truncation)
    with torch.no_grad():
        images = G(z, y)
    return np.rint((images.permute(0, 2, 3, 1).numpy() + 1) * 127.5)


def check(path, rows, columns, expected):
    picture = np.asarray(Image.open(path)).astype(float)
    assert picture.shape == (rows * STEP + GAP, columns * STEP + GAP, 3)
    for i, image in enumerate(expected):
        y, x = (GAP + STEP * j for j in divmod(i, columns))
        difference = np.abs(picture[y : y + SIDE, x : x + SIDE] - image).max()
        assert difference <= 1, f"row {i // columns}, column {i % columns}"


def latents(num, seed=0, truncation=None):
    return sampling.latents(num, 16, 3, seed, truncation)[0]


def test_grid(checkpoint, call, tmp_path):
    out = tmp_path / "new" / "grid.png"
    arguments = ("--classes", "owl", "0", "--per-class", 3, "--seed", 4, "--truncation", 0.5)
    status, text, _ = call("grid", checkpoint.parent, "-o", out, *arguments)
    assert status == 0 and "owl, cat" in text and str(out) in text and "step 7" in text
    z = latents(3, 4, 0.5).repeat(2, 1)
    check(out, 2, 3, draw(checkpoint, z, torch.tensor([2, 2, 2, 0, 0, 0]), 0.5))


def test_grid_of_all_classes(checkpoint, call, tmp_path):
    out = tmp_path / "grid.png"
    assert call("grid", checkpoint, "-o", out, "--no-ema", "--standing-batches", 0)[0] == 0
    y = torch.arange(3).repeat_interleave(8)
    check(out, 3, 8, draw(checkpoint, latents(8).repeat(3, 1), y, batches=0, ema=False))


@pytest.mark.parametrize("checkpoint", ["EvoNormS0"], indirect=True)
def test_sheets_have_the_rows_of_the_grid(checkpoint, call, tmp_path):
    out = tmp_path / "sheets"
    status, text, _ = call("sheets", checkpoint, "-o", out, "--rows", 2, "--per-class", 4)
    assert status == 0 and "2 sheets of all 3 classes" in text
    assert sorted(path.name for path in out.iterdir()) == ["0-1.png", "2-2.png", "classes.txt"]
    assert (out / "classes.txt").read_text() == "0-1.png: cat; dog\n2-2.png: owl\n"
    z = latents(4)
    check(out / "0-1.png", 2, 4, draw(checkpoint, z.repeat(2, 1), torch.tensor([0] * 4 + [1] * 4)))
    check(out / "2-2.png", 1, 4, draw(checkpoint, z, torch.full((4,), 2)))


@pytest.mark.parametrize("along, classes", [("z", ["dog"]), ("y", ["dog", "cat"])])
def test_interpolate(checkpoint, along, classes, call, tmp_path):
    out = tmp_path / "line.png"
    arguments = ("--along", along, "--rows", 2, "--steps", 3, "--classes", *classes)
    assert call("interpolate", checkpoint, "-o", out, *arguments)[0] == 0
    z = latents(4)
    start, end = (z[:2], z[2:]) if along == "z" else (z[:2], z[:2])
    zs = torch.stack([start, (start + end) / 2, end], 1).flatten(0, 1)
    table = load_generator(checkpoint)[0].embedding.weight.detach()
    first, last = table[1], table[1 if along == "z" else 0]
    check(out, 2, 3, draw(checkpoint, zs, torch.stack([first, (first + last) / 2, last] * 2)))


def test_truncation(checkpoint, call, tmp_path):
    out = tmp_path / "sweep.png"
    arguments = ("--values", 0.3, 2, "--columns", 2, "--class", "dog", "--seed", 1)
    status, text, _ = call("truncation", checkpoint, "-o", out, *arguments)
    assert status == 0 and "0.3, 2" in text
    rows = [draw(checkpoint, latents(2, 1, t), torch.tensor([1, 1]), t) for t in (0.3, 2.0)]
    check(out, 2, 2, np.concatenate(rows))
    assert call("truncation", checkpoint, "-o", tmp_path / "any.png", "--columns", 3)[0] == 0
    assert Image.open(tmp_path / "any.png").size == (3 * STEP + GAP, 6 * STEP + GAP)


def test_image(checkpoint, call, tmp_path):
    out = tmp_path / "owl.png"
    assert call("image", checkpoint, "-o", out, "--class", "owl", "--seed", 9)[0] == 0
    picture = np.asarray(Image.open(out)).astype(float)
    assert picture.shape == (SIDE, SIDE, 3)
    assert np.abs(picture - draw(checkpoint, latents(1, 9), torch.tensor([2]))[0]).max() <= 1


def test_export(checkpoint, call, tmp_path):
    out = tmp_path / "new" / "G.pt"
    status, text, _ = call("export", checkpoint, "-o", out, "--format", "torchscript")
    assert status == 0 and "z (N, 16)" in text and "at most" in text
    z, y = latents(4, 3), torch.tensor([0, 1, 2, 2])
    images = torch.jit.load(out)(z, y).permute(0, 2, 3, 1).numpy()
    assert np.abs((images + 1) * 127.5 - draw(checkpoint, z, y)).max() <= 0.6


@pytest.mark.parametrize("checkpoint", ["BN-ReLU"], indirect=True)
def test_images(checkpoint, call, tmp_path, monkeypatch):
    """Of classes in turn; tests/tools/test_eval_gan.py has all forms of classes at random."""
    out = tmp_path / "new" / "a.npz"
    command = ("images", checkpoint, "-n", 11, "--truncation", 0.5, "-o", out, "--seed", 4)
    status, text, _ = call(*command, "--classes", "owl", "cat")
    assert status == 0 and "11 images, 2 classes in turn, seed 4" in text
    y = torch.tensor([2, 0]).repeat(6)[:11]
    G = load_generator(checkpoint)[0]
    sampling.standing_statistics(G, 2, 8, 4, 0.5)
    with torch.no_grad():
        expected = (G(latents(11, 4, 0.5), y).permute(0, 2, 3, 1).numpy() + 1) * 127.5
    with np.load(out) as file:
        assert np.abs(file["arr_0"] - np.rint(expected)).max() <= 1
        assert file["arr_1"].tolist() == y.tolist()
    assert [path.name for path in out.parent.iterdir()] == ["a.npz"]
    status, _, error = call(*command, "--balanced")
    assert status == 2 and "exists already" in error

    seen = []  # all that the images depend on
    monkeypatch.setattr(tool, "write_image_set", lambda *args: seen.append(args[-1]))
    for classes in (("owl", "cat"), ("cat", "owl")):
        call("images", checkpoint, "-n", 2, "-o", tmp_path / "b.npz", "--classes", *classes)
    assert [settings.pop("classes") for settings in seen] == [[2, 0], [0, 2]]
    assert seen[0] == seen[1] and seen[0]["-n"] == 2


def test_a_wrong_export_is_one_line(checkpoint, call, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    out = tmp_path / "G.pt"
    status, _, error = call("export", checkpoint, "-o", out, "--format", "torchscript")
    assert status == 2 and error.count("\n") == 1 and "not written" in error and not out.exists()


@pytest.mark.parametrize("checkpoint", ["EvoNormS0"], indirect=True)
def test_errors_are_one_line(checkpoint, call, tmp_path):
    out = tmp_path / "out.png"

    def refused(message, *arguments, path=checkpoint):
        command, *rest = arguments
        status, _, error = call(command, path, "-o", out, *rest)
        assert status == 2 and message in error, error
        assert error.splitlines()[-1].startswith("sample_gan.py") and "Traceback" not in error

    refused("the closest is 'owl'", "image", "--class", "owls")
    refused(
        "takes two classes, but --classes gives 1", "interpolate", "--along", "y", "--classes", 1
    )
    refused("takes one class, but --classes gives 2", "interpolate", "--classes", "cat", "dog")
    refused("no such checkpoint", "grid", path=tmp_path / "nothing.pth")
    refused("is less than 1", "grid", "--per-class", 0)
    refused("1000000000 is less than 1, or huge", "grid", "--per-class", 10**9)
    refused("or huge", "truncation", "--columns", 10**9)
    refused("not a finite number above 0", "grid", "--truncation", "-1")
    refused("is less than 0, or huge", "grid", "--seed", 2**64)
    refused("--device: Expected one of", "grid", "--device", "nonsense")
    assert list(tmp_path.iterdir()) == []

    assert call("image", checkpoint, "-o", tmp_path / "x.jpg", "--class", 0)[0] == 2
    out.write_text("mine")
    refused("exists already", "grid")
    assert out.read_text() == "mine"
    (tmp_path / "folder").write_text("a file")
    status, _, error = call("grid", checkpoint, "-o", tmp_path / "folder" / "x.png")
    assert status == 2 and error.count("\n") == 1 and "folder" in error
