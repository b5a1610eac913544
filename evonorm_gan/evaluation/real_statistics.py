"""Statistics of the real images, which the metrics compare with, and where they are kept."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_fidelity
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evonorm_runs import distributed
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import atomic_write, read_checkpoint

from ..config import EMBEDDED
from .extractor import Extractor, checksum, shares

log = logging.getLogger(__name__)

# Images, real ones and others, that KID, precision and recall look at unless TEST.SUBSET says how
# many: quadratic in their number.
SUBSET = dict.fromkeys(EMBEDDED, 2_000)
USUAL_SUBSET = 10_000


def subset_size(cfg: CfgNode) -> int:
    """The number of images, at most, that KID, precision and recall look at."""
    return cfg.TEST.SUBSET or SUBSET.get(cfg.TEST.EXTRACTOR, USUAL_SUBSET)


def subset(num: int, limit: int) -> Tensor:
    """The indices, ascending, of at most `limit` of `num` things; always the same random ones."""
    if num <= limit:
        return torch.arange(num)
    return torch.randperm(num, generator=torch.Generator().manual_seed(0))[:limit].sort().values


@dataclass(frozen=True)
class RealStatistics:
    """What the metrics compare with.

    Attributes:
        mu: mean of the features, (width,) float64.
        sigma: their covariance, (width, width) float64.
        features: those of a :func:`subset` of the images, (n, width); None if they are unknown.
    """

    mu: np.ndarray
    sigma: np.ndarray
    features: Tensor | None


def moments(batches: Iterable[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Mean (width,) and covariance (width, width), as numpy.cov's, of batches (n, width).

    They are summed in float64 around the first batch's mean, and no batch is kept.
    """
    num, shift = 0, None
    for batch in batches:
        x = batch.double()
        if shift is None:
            shift = x.mean(0)
            total, products = torch.zeros_like(shift), shift.new_zeros(len(shift), len(shift))
        x = x - shift
        num += len(x)
        total += x.sum(0)
        products.addmm_(x.T, x)
    mean = total / num
    covariance = (products - num * torch.outer(mean, mean)) / (num - 1)
    return (shift + mean).numpy(), covariance.numpy()


def real_statistics(
    dataset: Dataset, extractor: Extractor, cfg: CfgNode
) -> tuple[RealStatistics | None, str]:
    """Statistics of a data set, from cfg.TEST.CACHE_DIR if they were computed before.

    The key of that file is everything that they depend on; torch-fidelity's own cache, whose key
    is a name, is not used.

    Returns:
        them, or None but in the main process; and one line about where they are from.
    """
    key = {
        "data": _fingerprint(dataset, Path(cfg.TEST.CACHE_DIR)),
        "images": len(dataset),
        "subset": subset_size(cfg),
        "extractor": extractor.name,
        "layer": extractor.layer,
        "weights": extractor.digest,
        "torch-fidelity": torch_fidelity.__version__,
        "version": 2,  # of this code
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    name = extractor.name.replace("/", "-")
    path = Path(cfg.TEST.CACHE_DIR) / f"real-{name}-{digest[:16]}.pt"
    found = _read_statistics(path, digest) if distributed.is_main() else None
    if _from_main(found is not None):
        return found, f"statistics of {len(dataset)} real images: {path}"
    parts = list(shares(len(dataset), cfg.TEST.BATCH_SIZE))
    in_memory = getattr(dataset, "images", None) is not None
    loader = DataLoader(
        dataset,
        batch_sampler=[index.tolist() for index, _ in parts],
        num_workers=0 if in_memory else cfg.DATA.NUM_WORKERS,
    )
    batches = ((images, size) for (images, _), (_, size) in zip(loader, parts))
    stream = extractor.stream(batches, len(dataset), "real images")
    if not distributed.is_main():
        for _ in stream:
            pass
        return None, ""
    picked: list[Tensor] = []
    chosen = subset(len(dataset), subset_size(cfg))
    mu, sigma = moments(_pick((found[0] for found in stream), chosen, picked))
    statistics = RealStatistics(mu, sigma, torch.cat(picked))
    with user_errors(OSError, prefix=f"{path}: "):
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {name: torch.as_tensor(value) for name, value in vars(statistics).items()}
        with atomic_write(path) as file:
            torch.save({**content, "key": digest, "sum": checksum(content)}, file)
    return statistics, f"statistics of {len(dataset)} real images: computed, kept in {path}"


def _fingerprint(dataset: Dataset, cache: Path) -> str:
    """The data set's, which means reading all its files once: kept in `cache` under its stamp."""
    if getattr(dataset, "images", None) is not None:  # in memory
        return dataset.fingerprint()
    path = cache / f"content-{dataset.stamp()}.txt"
    if distributed.is_main():
        with user_errors(OSError, prefix=f"{path}: "):
            if not path.exists() or len(path.read_bytes()) != 64:
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as file:
                    file.write(dataset.fingerprint().encode())
            return path.read_text()
    return ""  # the key matters in the main process only


def _pick(batches: Iterable[Tensor], chosen: Tensor, picked: list[Tensor]) -> Iterator[Tensor]:
    """The batches; the rows of all of them that are chosen (ascending) are added to `picked`."""
    start = 0
    for batch in batches:
        low, high = torch.searchsorted(chosen, torch.tensor([start, start + len(batch)])).tolist()
        picked.append(batch[chosen[low:high] - start])
        start += len(batch)
        yield batch


def _read_statistics(path: Path, digest: str) -> RealStatistics | None:
    """Those in the file; None if it is absent, or, with a note, damaged."""
    try:
        content = read_checkpoint(path)
        given = {name: content.pop(name, None) for name in ("key", "sum")}
        if given == {"key": digest, "sum": checksum(content)}:
            mu, sigma, features = (content[name] for name in ("mu", "sigma", "features"))
            return RealStatistics(mu.numpy(), sigma.numpy(), features)
    except FileNotFoundError:
        return None
    except (UserError, OSError, AttributeError, KeyError, TypeError):
        pass
    log.warning("%s: damaged; computing the statistics again", path)
    return None


def _from_main(value: Any) -> bool:
    """The main process's value, in every process."""
    return bool(distributed.gather(torch.tensor([float(value)]))[0])
