"""The test images of Fashion-MNIST: 10,000 photographs of garments, 28x28 pixels in grey, embedded.

H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine
learning algorithms, 2017 (arXiv:1708.07747); MIT licence, in the folder of the files.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError

FOLDER = Path(__file__).parent / "fashion_mnist"
CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
# Images of each class, of 1,000. "val" scores a search's candidates; it never sees "test".
PARTS = {"train": range(0, 800), "val": range(800, 900), "test": range(900, 1000)}
SEED = 0  # of the split
RESOLUTIONS = (16, 28, 32)


def load_garments(part: str, resolution: int = 28) -> tuple[Tensor, Tensor]:
    """A part of the images: uint8 (n, 1, resolution, resolution), and the classes int64 (n,).

    The three parts share no image and have as many of each class; n is 8,000, 1,000 or 1,000. 32 is
    28 with a black border of 2 pixels, 16 is that halved by averaging.

    Raises:
        UserError: a part or a resolution that there is not.
    """
    if part not in PARTS:
        raise UserError(f"the garments have no part {part!r}; they have {', '.join(PARTS)}")
    if resolution not in RESOLUTIONS:
        known = " or ".join(map(str, RESOLUTIONS))
        raise UserError(f"the garments come in a resolution of {known}, not {resolution}")
    labels = _read("t10k-labels-idx1-ubyte.gz", 8).long()
    images = _read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(labels), generator=generator)
    own = PARTS[part]
    chosen = [order[labels[order] == c][own.start : own.stop] for c in range(len(CLASSES))]
    indices = torch.cat(chosen).sort().values
    return _resized(images[indices], resolution), labels[indices]


def _read(name: str, header: int) -> Tensor:
    """The bytes of a file in MNIST's format behind its header."""
    with gzip.open(FOLDER / name) as file:
        return torch.frombuffer(bytearray(file.read()[header:]), dtype=torch.uint8)


def _resized(images: Tensor, resolution: int) -> Tensor:
    if resolution == 28:
        return images
    padded = F.pad(images, (2, 2, 2, 2))
    if resolution == 32:
        return padded
    return F.avg_pool2d(padded.float(), 2).round().to(torch.uint8)
