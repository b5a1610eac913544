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


@pytest.mark.parametrize("num", [1, 10**9])  # the latter would be 2.8 TiB
def test_an_npz_that_promises_more_than_it_holds(tmp_path, num):
    text = line(npz(tmp_path / "a.npz", (num, 32, 32, 3)))
    assert f"a.npz: not an .npz, or damaged (arr_0.npy should be {num * 3072:,} bytes" in text


def test_an_npz_that_does_not_fit_the_memory(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", noise(3, 32, 32, 3))

    def full(*args, **kwargs):
        raise MemoryError("Unable to allocate 2.79 TiB")

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", full)
    assert line(tmp_path / "a.npz").endswith("a.npz: too large for this machine's memory")


def test_a_fifo_in_a_folder(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "a.png: not an image, or damaged (not a regular file)" in line(tmp_path)


def test_images_are_seen_as_a_person_sees_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = noise(32, 32, 3)
    Image.fromarray(pixels[::-1, ::-1]).save(tmp_path / "a.png", exif=exif)
    Image.new("RGBA", (32, 32), (9, 9, 9, 0)).save(tmp_path / "b.png")
    (images,) = image_batches(tmp_path, 32, 4)
    assert np.array_equal(images[0].permute(1, 2, 0), pixels)
    assert (images[1] == 255).all()
