"""The pictures of runs, made small enough to be part of a page."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from evonorm_runs.images.decode import open_image

from .runs import RunFolder

SMALL = 40_000  # bytes; a smaller PNG is taken as it is
LARGEST = 60_000_000  # pixels; a larger picture is not opened
QUALITY = 82
SHEET, GRID = 1200, 512  # the most pixels of the longer side
PICTURES, GRIDS = 6, 12  # the most that are shown of one run
ALL_GRIDS = 72  # about the most of all runs of a kind
BUDGET = 4_500_000  # bytes that all pictures in the page may take


@dataclass(frozen=True)
class Picture:
    """A picture of a run.

    Attributes:
        url: a data: URL, empty if the picture is not shown.
        width, height: of the file, in pixels.
        note: that it was scaled, or why it is not shown.
        step: for a grid of samples.
    """

    name: str
    url: str = ""
    width: int = 0
    height: int = 0
    note: str = ""
    step: int = 0


class Album:
    """Takes pictures until there is no more space in the page."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.left = budget

    def take(self, path: Path, name: str, side: int, step: int = 0) -> Picture:
        """A picture whose longer side has at most `side` pixels; a note if it can't be shown."""
        try:
            with warnings.catch_warnings(), _open(path) as image:
                width, height = image.size
                if width * height > LARGEST:
                    return Picture(name, note=f"not shown: {width}×{height} pixels", step=step)
                data, kind, note = _shrink(path, image, side)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return Picture(name, note="can't be read", step=step)
        if len(data) * 4 // 3 > self.left:
            return Picture(name, note="not shown, to keep this page small", step=step)
        self.left -= len(data) * 4 // 3
        url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        return Picture(name, url, width, height, note, step)

    def samples(self, runs: Sequence[RunFolder]) -> dict[int, tuple[list[Picture], int]]:
        """Each run's grids of samples in the order of their steps, and how many there are in all.

        If there are many, these are the first one, the last one and some evenly between them.
        """
        found = {run.index: _grids(run) for run in runs}
        found = {index: grids for index, grids in found.items() if grids}
        most = max(2, min(GRIDS, ALL_GRIDS // max(1, len(found))))
        return {
            index: ([self.take(p, p.name, GRID, s) for s, p in _evenly(grids, most)], len(grids))
            for index, grids in found.items()
        }

    def pictures(self, run: RunFolder, without: Sequence[str] = ()) -> list[Picture]:
        """The PNGs in a run's folder, such as predictions.png and grid.png."""
        paths = sorted(path for path in run.folder.glob("*.png") if path.name not in without)
        shown = [self.take(path, path.name, SHEET) for path in paths[:PICTURES]]
        return shown + [Picture(path.name, note="not shown") for path in paths[PICTURES:]]


def _open(path: Path) -> Image.Image:
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # LARGEST guards against them
    return open_image(path)


def _shrink(path: Path, image: Image.Image, side: int) -> tuple[bytes, str, str]:
    """The bytes of a picture, their format, and a note if it was scaled."""
    if image.format == "PNG" and max(image.size) <= side and path.stat().st_size <= SMALL:
        image.load()  # raises if it is damaged
        return path.read_bytes(), "png", ""
    width, height = image.size
    picture = Image.new("RGBA", image.size, "white")
    picture.alpha_composite(image.convert("RGBA"))
    picture = picture.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    note = ""
    if picture.size != (width, height):
        note = f"scaled from {width}×{height} to {picture.width}×{picture.height} pixels"
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=QUALITY)
    return file.getvalue(), "webp", note


def _grids(run: RunFolder) -> list[tuple[int, Path]]:
    """The steps and files of a run's grids of samples, in the order of the steps."""
    found = run.folder.glob(run.kind.samples) if run.kind.samples else ()
    paths = [path for path in found if path.stem.isascii() and path.stem.isdigit()]
    return sorted((int(path.stem[:18]), path) for path in paths)


def _evenly(items: list, most: int) -> list:
    if len(items) <= most:
        return items
    last = len(items) - 1
    return [items[round(i * last / (most - 1))] for i in range(most)]
