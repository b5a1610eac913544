"""What images are compared with: a split of the data set, other images, a file of statistics."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch.utils.data import Dataset

from evonorm_runs import distributed
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.images.files import KEYS, read_npz
from evonorm_runs.images.sets import MemorySet

from ..data import open_dataset, open_images
from .extractor import Extractor
from .real_statistics import RealStatistics, real_statistics

NPZ_ERRORS = (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Reference:
    """What TEST.REFERENCE names.

    Attributes:
        images: None in a file of statistics only.
        mu, sigma: of the features, (width,) and (width, width), where a file has them; they take
            the place of the images' own.
        file: that file.
    """

    images: Dataset | None = None
    mu: np.ndarray | None = None
    sigma: np.ndarray | None = None
    file: Path | None = None

    def statistics(self, extractor: Extractor, cfg: CfgNode) -> tuple[RealStatistics | None, str]:
        """As :func:`real_statistics`; FID is of the file's statistics, if there are any."""
        self._check(extractor)
        found, about = None, ""
        if self.images is not None:
            found, about = real_statistics(self.images, extractor, cfg)
        if self.mu is None:
            return found, about
        about = f"{self.file}: its mu and sigma, for FID{about and '; for the others: '}{about}"
        if not distributed.is_main():
            return None, about
        mu, sigma = (x.astype(np.float64) for x in (self.mu, self.sigma))
        return RealStatistics(mu, sigma, found.features if found else None), about

    def _check(self, extractor: Extractor) -> None:
        """Raise a UserError if mu and sigma can't be those of the extractor's features."""
        if self.mu is None:
            return
        shapes, width = (self.mu.shape, self.sigma.shape), extractor.width
        numbers = all(x.dtype.kind == "f" and np.isfinite(x).all() for x in (self.mu, self.sigma))
        if shapes != ((width,), (width, width)) or not numbers:
            raise UserError(
                f"TEST.REFERENCE: {self.file}: mu {self.mu.dtype} {shapes[0]} and sigma "
                f"{self.sigma.dtype} {shapes[1]} should be finite, ({width},) and ({width}, "
                f"{width}), as the features of {extractor.name} have them"
            )


def open_reference(cfg: CfgNode) -> Reference:
    """What TEST.REFERENCE names: "train" or "val", the splits of DATA; a folder, .zip or .h5 as
    DATA.ROOT may be; or an .npz.

    An .npz has `mu` and `sigma` (as TTUR's files of statistics), images as `arr_0`, or all three
    (as ADM's reference batches).

    Raises:
        UserError: there is no such thing, or it does not fit the config.
    """
    name = cfg.TEST.REFERENCE
    if name in ("train", "val"):
        return Reference(open_dataset(cfg, name))
    path = Path(name).expanduser()
    if path.suffix != ".npz":
        options = (cfg.MODEL.RESOLUTION, cfg.DATA.SKIP_CORRUPT, "TEST.REFERENCE")
        return Reference(open_images(path, *options))
    if not path.is_file():
        raise UserError(f"TEST.REFERENCE: there is no file {path}")
    with user_errors(*NPZ_ERRORS, prefix=f"TEST.REFERENCE: {path}: not an .npz, or damaged: "):
        with np.load(path, allow_pickle=False) as file:
            held = set(file)
            moments = [file[key] for key in ("mu", "sigma") if key in held]
    if len(moments) == 1 or not (moments or held & set(KEYS)):
        raise UserError(
            f"TEST.REFERENCE: {path} holds {', '.join(sorted(held)) or 'nothing'}, but should hold "
            "mu and sigma, or images as arr_0"
        )
    images = None
    if held & set(KEYS):
        pixels = read_npz(path, cfg.MODEL.RESOLUTION).contiguous()
        images = MemorySet(pixels, torch.zeros(len(pixels), dtype=torch.int64), ["all"])
    return Reference(images, *moments, file=path) if moments else Reference(images)
