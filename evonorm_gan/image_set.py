"""Many images of a generator as a folder, a zip or an .npz, drawn by all processes.

They are drawn batch by batch into a folder beside the output, from which a call that was killed
goes on. A batch's images depend on nothing but the settings: whoever draws it, they are the same.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from evonorm_runs import distributed
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import PARTIAL, atomic_write

from .sampling import generate

SETTINGS = "settings.json"
LABELS = "dataset.json"  # the name and the form that stylegan3's tools read


def write_image_set(
    G: nn.Module, z: Tensor, y: Tensor, batch_size: int, output: Path, settings: dict[str, Any]
) -> None:
    """Draw images of z (N, dim_z) and classes y (N,), and write them in this order.

    A name in .npz holds images uint8 (N, R, R, 3) as arr_0 and classes as arr_1, as ADM's samples
    do. A name in .zip, or any other one, which is a folder's, holds PNGs and a dataset.json with
    their classes. The output is whole or absent.

    Args:
        settings: all that the images depend on, as JSON has it; images that were drawn with other
            settings are not mixed with these.

    Raises:
        UserError: such images are there, or G makes NaN.
    """
    parts = output.with_name(f"{output.name}.parts")
    _claim(parts, settings)
    files = [parts / f"{i:07d}.npy" for i in range(-(-len(y) // batch_size))]
    mine = range(distributed.rank(), len(files), distributed.world_size())
    missing = [i for i in mine if not files[i].exists()]
    hidden = None if distributed.is_main() else True
    for i in tqdm(missing, desc="samples", unit="batch", disable=hidden):
        at = slice(i * batch_size, (i + 1) * batch_size)
        (images,) = generate(G, z[at], y[at], batch_size)
        with atomic_write(files[i]) as file:
            np.save(file, images.permute(0, 2, 3, 1).numpy())
    distributed.barrier()
    if distributed.is_main():
        write = {".npz": _write_npz, ".zip": _write_zip}.get(output.suffix, _write_folder)
        write(output, parts, files, y.numpy())
        shutil.rmtree(parts)
    distributed.barrier()


def _claim(parts: Path, settings: dict[str, Any]) -> None:
    """Make the folder of the parts, or see that the one which is there has the same settings."""
    path = parts / SETTINGS
    if distributed.is_main() and not path.exists():
        parts.mkdir(parents=True, exist_ok=True)
        if any(file.suffix != PARTIAL for file in parts.iterdir()):
            raise UserError(f"{parts}: holds no images that were begun; choose another name")
        with atomic_write(path) as file:
            file.write(json.dumps(settings).encode())
    distributed.barrier()
    with user_errors(OSError, ValueError, prefix=f"{path}: damaged; delete this folder: "):
        found = dict(json.loads(path.read_bytes()))
    differing = [key for key in settings if found.get(key) != settings[key]]
    if differing:
        raise UserError(
            f"{parts}: holds images that were begun with another {', '.join(differing)}; "
            "delete it, or choose another name"
        )


def _images(files: Sequence[Path]) -> Iterator[np.ndarray]:
    """The batches, uint8 (n, R, R, 3)."""
    for path in files:
        damaged = f"{path}: damaged; delete it and draw again: "
        with user_errors(OSError, ValueError, EOFError, prefix=damaged):
            images = np.load(path, allow_pickle=False)
        yield images


def _write_npz(output: Path, parts: Path, files: Sequence[Path], y: np.ndarray) -> None:
    """Batch by batch, as all of them may not fit the memory."""
    shape = (len(y), *next(_images(files)).shape[1:])
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with atomic_write(output) as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for images in _images(files):
                member.write(images.tobytes())
        with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as member:
            np.lib.format.write_array(member, y)


def _write_zip(output: Path, parts: Path, files: Sequence[Path], y: np.ndarray) -> None:
    with atomic_write(output) as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in _members(files, y):
            archive.writestr(zipfile.ZipInfo(name), content)


def _write_folder(output: Path, parts: Path, files: Sequence[Path], y: np.ndarray) -> None:
    made = parts / "images"
    made.mkdir(exist_ok=True)
    for name, content in _members(files, y):
        (made / name).write_bytes(content)
    os.sync()  # once for all, as a file at a time takes long
    made.rename(output)


def _members(files: Sequence[Path], y: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """The names, which are in the images' order, and contents of all files."""
    width = max(6, len(str(len(y) - 1)))
    names = [f"{i:0{width}d}.png" for i in range(len(y))]
    batches = tqdm(_images(files), total=len(files), desc="PNGs", unit="batch")
    images = (image for batch in batches for image in batch)
    for name, image in zip(names, images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        yield name, buffer.getvalue()
    yield LABELS, json.dumps({"labels": list(zip(names, y.tolist()))}).encode()
