"""Pack a folder per class into one HDF5 file or zip of images that are cropped and resized.

A run then reads one file instead of many, and decodes small images, or none at all (HDF5).
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from evonorm_gan.data import describe
from evonorm_runs.command_line import run_tool
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import PARTIAL, atomic_write
from evonorm_runs.images.sets import FolderSet, ImageSet

MOST_WORKERS = 256


@run_tool("pack_images.py")
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with a folder per class")
    parser.add_argument("output", type=Path, help="OUT.h5 or OUT.zip; must not exist")
    parser.add_argument(
        "--resolution",
        type=int,
        required=True,
        choices=(32, 64, 96, 128, 256, 512),
        help="in pixels",
    )
    parser.add_argument(
        "--skip-corrupt", action="store_true", help="another of its class takes an image's place"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help=f"processes that decode, at most {MOST_WORKERS} (default: 2)",
    )
    args = parser.parse_args()
    if args.output.suffix not in WRITERS:
        parser.error(f"OUT should end in {' or '.join(WRITERS)}, got {args.output}")
    if not 0 <= args.workers <= MOST_WORKERS:
        raise UserError(f"--workers must be from 0 to {MOST_WORKERS}, got {args.workers}")
    ds = FolderSet(args.folder.expanduser(), args.resolution, args.skip_corrupt)
    ds.remedy = "give --skip-corrupt"
    print(describe(ds))
    with user_errors(OSError, UnicodeError):
        pack(ds, args.output, args.workers)
    print(f"{args.output}: to train on it, set DATA.NAME '' DATA.ROOT {args.output}")
    return 0


def pack(ds: ImageSet, output: Path, workers: int) -> None:
    """Write a data set to a file. The file appears whole or not at all."""
    if output.exists():
        raise UserError(f"{output} exists already: remove it or name another")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_write(output) as file:
            WRITERS[output.suffix](ds, Path(file.name), batches(ds, workers))
    finally:
        output.with_name(f"{output.name}.{os.getpid()}{PARTIAL}").unlink(missing_ok=True)


def batches(ds: ImageSet, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images and labels in order, with a progress bar."""
    with tqdm(total=len(ds), unit="image") as bar:
        for images, labels in DataLoader(ds, batch_size=64, num_workers=workers):
            yield images, labels
            bar.update(len(images))


def write_hdf5(ds: ImageSet, path: Path, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
    import h5py

    all_labels = []
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("images", (len(ds), 3, ds.resolution, ds.resolution), "uint8")
        done = 0
        for images, labels in batches:
            stored[done : done + len(images)] = images.numpy()
            done += len(images)
            all_labels.append(labels)
        file["labels"] = torch.cat(all_labels).numpy()
        file["classes"] = ds.classes


def write_zip(ds: ImageSet, path: Path, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
    done = 0
    with zipfile.ZipFile(path, "w") as file:  # stored: PNGs are compressed already
        for images, labels in batches:
            for image, label in zip(images, labels):
                png = io.BytesIO()
                to_pil_image(image).save(png, "PNG")
                # A ZipInfo has a fixed date: the same folder gives the same bytes.
                name = zipfile.ZipInfo(f"{ds.classes[label]}/{done:08d}.png")
                file.writestr(name, png.getvalue())
                done += 1


WRITERS = {".h5": write_hdf5, ".hdf5": write_hdf5, ".zip": write_zip}

if __name__ == "__main__":
    sys.exit(main())
