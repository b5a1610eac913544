"""Many images as a folder, a zip or an .npz: in order, shared by processes, and after a kill."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evonorm_gan import image_set
from evonorm_gan.image_set import write_image_set
from evonorm_runs import distributed
from evonorm_runs.errors import UserError

NUM, BATCH = 21, 4
SETTINGS = {"--seed": 0, "--truncation": None, "classes": [0, 1]}


class Plain(nn.Module):
    """Images whose pixels are z and the class, as a generator would give them."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.drawn = 0

    def forward(self, z, y):
        self.drawn += len(z)
        return (z.view(-1, 3, 4, 4) * self.scale + y.view(-1, 1, 1, 1) / 10).tanh()


@pytest.fixture
def draw(tmp_path):
    """draw(name): the images as that file or folder, and how many were drawn."""
    z = torch.randn(NUM, 48, generator=torch.Generator().manual_seed(0))
    y = torch.arange(NUM) % 3

    def call(name, **settings):
        G = Plain()
        output = tmp_path / name
        try:
            write_image_set(G, z, y, BATCH, output, {**SETTINGS, **settings})
        finally:
            call.drawn = G.drawn
        return output

    call.expected = ((Plain()(z, y) + 1) * 127.5).round().detach().byte().permute(0, 2, 3, 1)
    call.labels = y.tolist()
    return call


def test_each_form_holds_the_images_in_order(draw, tmp_path):
    folder = draw("folder")
    names = [f"{i:06d}.png" for i in range(NUM)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "dataset.json"]
    found = np.stack([np.asarray(Image.open(folder / name)) for name in names])
    assert np.array_equal(found, draw.expected)
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    assert labels == [list(pair) for pair in zip(names, draw.labels)]
    with np.load(draw("a.npz")) as file:
        assert np.array_equal(file["arr_0"], found) and file["arr_1"].tolist() == draw.labels
    with zipfile.ZipFile(draw("a.zip")) as archive:
        assert archive.namelist() == [*names, "dataset.json"]
        for name in archive.namelist():
            assert archive.read(name) == (folder / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.zip", "folder"]


@pytest.mark.parametrize("name", ["x", "x.zip", "x.npz"])
@pytest.mark.parametrize("place", [0, 2, 5, 6])
def test_one_that_was_stopped_goes_on(draw, tmp_path, monkeypatch, name, place):
    """After so many batches, of 6, or while all of them are put together."""
    whole = draw(f"whole-{name}")
    real, done = image_set.generate, []

    def generate(*args):
        if len(done) == place:
            raise KeyboardInterrupt
        done.append(args)
        return real(*args)

    def first_only(files):
        yield np.load(files[0])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(image_set, "generate", generate)
        if place == 6:
            patch.setattr(image_set, "_images", first_only)
        with pytest.raises(KeyboardInterrupt):
            draw(name)
    assert not (tmp_path / name).exists()
    stopped = draw(name)
    assert draw.drawn == max(0, NUM - BATCH * place), "what was drawn is not drawn again"
    assert read(stopped) == read(whole)
    assert {path.name for path in tmp_path.iterdir()} == {name, f"whole-{name}"}


def read(path):
    """All bytes, by name."""
    if path.is_file():
        return path.read_bytes()
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_two_processes_draw_what_one_draws(draw, tmp_path, monkeypatch):
    whole = draw("one.npz")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    with pytest.raises(UserError, match="0000001.npy"):  # it does not wait here for the other
        draw("two.npz")
    assert draw.drawn == BATCH + BATCH + BATCH
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    draw("two.npz")
    assert draw.drawn == BATCH + BATCH + 1 and not (tmp_path / "two.npz").exists()
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    assert read(draw("two.npz")) == read(whole) and draw.drawn == 0


def test_images_of_other_settings_or_of_others_are_left_alone(draw, tmp_path, monkeypatch):
    monkeypatch.setattr(image_set, "_write_zip", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw("a.zip")
    with pytest.raises(UserError, match=r"a.zip.parts: .* with another --seed, classes; delete it"):
        draw("a.zip", **{"--seed": 1, "classes": [0]})
    (tmp_path / "a.zip.parts" / "0000003.npy").write_bytes(b"x")
    (tmp_path / "b.zip.parts").mkdir()
    (tmp_path / "b.zip.parts" / "mine").write_text("kept")
    with pytest.raises(UserError, match="b.zip.parts: holds no images that were begun"):
        draw("b.zip")
    assert (tmp_path / "b.zip.parts" / "mine").read_text() == "kept"
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"0000003.npy: damaged; delete it and draw again"):
        draw("a.zip")
