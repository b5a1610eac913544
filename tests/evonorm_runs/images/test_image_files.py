"""Images to be evaluated, in a folder or an .npz: what is no image is named, and nothing hangs."""

from __future__ import annotations

import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from evonorm_runs.errors import UserError
from evonorm_runs.images.files import image_batches


def line(path):
    with pytest.raises(UserError) as caught:
        list(image_batches(path, 32, 4))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def noise(*shape):
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def npz(path, shape, compression=zipfile.ZIP_DEFLATED):
    """An .npz whose array says that it has this shape, but holds ten bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("arr_0.npy", header.getvalue() + bytes(10))
    return path


def test_an_npz_that_promises_more_than_it_holds(tmp_path):
    text = line(npz(tmp_path / "a.npz", (1, 32, 32, 3)))
    assert "a.npz: not an .npz, or damaged (arr_0.npy should be 3,072 bytes, but is" in text
    text = line(npz(tmp_path / "b.npz", (10**9, 32, 32, 3)))  # 2.8 TiB
    assert text.endswith("b.npz: too large for this machine's memory")


def test_an_npz_that_does_not_fit_the_memory(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", noise(3, 32, 32, 3))

    def full(*args, **kwargs):
        raise MemoryError("Unable to allocate 2.79 TiB")

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", full)
    assert line(tmp_path / "a.npz").endswith("a.npz: too large for this machine's memory")


def test_a_fifo_in_a_folder(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "a.png: not an image, or damaged (not a regular file)" in line(tmp_path)
    os.mkfifo(tmp_path / "a.npz")
    assert line(tmp_path / "a.npz").endswith("a.npz: neither a folder nor a regular file")


def test_images_are_seen_as_a_person_sees_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = noise(32, 32, 3)
    Image.fromarray(pixels[::-1, ::-1]).save(tmp_path / "a.png", exif=exif)
    Image.new("RGBA", (32, 32), (9, 9, 9, 0)).save(tmp_path / "b.png")
    (images,) = image_batches(tmp_path, 32, 4)
    assert np.array_equal(images[0].permute(1, 2, 0), pixels)
    assert (images[1] == 255).all()
