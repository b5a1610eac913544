"""The file of the Inception weights."""

from __future__ import annotations

import logging
import shutil
import urllib.request
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from evonorm_runs.errors import UserError
from evonorm_runs.files import atomic_write, sha256

log = logging.getLogger(__name__)

PUBLISHED = "6726825d"  # begins the sha256 of the published file, and is in its name


def inception_weights(cfg: CfgNode) -> Path:
    """The file of the Inception weights; downloaded if it is the default one and missing.

    Raises:
        UserError: there is none.
    """
    if cfg.TEST.INCEPTION_WEIGHTS:
        path = Path(cfg.TEST.INCEPTION_WEIGHTS)
        if not path.is_file():
            raise UserError(f"TEST.INCEPTION_WEIGHTS: no file {path}")
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    if not path.is_file():
        try:
            _download(URL_INCEPTION_V3, path)
        except OSError as error:
            raise UserError(
                f"no Inception weights, and downloading them failed ({error}): get "
                f"{URL_INCEPTION_V3} and put it at {path}, or name it with --inception-weights "
                "or TEST.INCEPTION_WEIGHTS"
            ) from error
    return path


def _download(url: str, path: Path) -> None:
    log.warning("downloading %s to %s (about 91 MB)", url, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The timeout is that of each wait, so it ends without a network too.
    with urllib.request.urlopen(url, timeout=10) as response, atomic_write(path) as file:
        shutil.copyfileobj(response, file)
        file.flush()
        if not sha256(Path(file.name)).startswith(PUBLISHED):
            raise OSError(f"what came is not it: its sha256 would begin with {PUBLISHED}")
