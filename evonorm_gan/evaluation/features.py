"""Features of images for the metrics: extractors, their weights, statistics of the real images."""

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
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch_fidelity.utils import create_feature_extractor
from tqdm import tqdm

from evonorm_runs import distributed
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import atomic_write, read_checkpoint, sha256

from ..config import EMBEDDED
from . import clean_inception, embedded_extractor
from .embedded_extractor import trained_weights
from .inception import PUBLISHED, inception_weights
from .timm_extractor import PREFIX, TimmExtractor

log = logging.getLogger(__name__)

# Of each extractor but timm's: the layer for all metrics but IS, and that for IS.
LAYERS = {
    "inception-v3-compat": ("2048", "logits_unbiased"),
    clean_inception.NAME: ("2048", "logits_unbiased"),
    **dict.fromkeys(EMBEDDED, embedded_extractor.LAYERS),
}
# Of the former.
WIDTH = {
    "inception-v3-compat": 2048,
    clean_inception.NAME: 2048,
    **dict.fromkeys(EMBEDDED, embedded_extractor.WIDTH),
}
# How the two Inceptions make images 299x299.
RESIZING = {
    "inception-v3-compat": "as TensorFlow 1 does, bilinear without antialiasing",
    clean_inception.NAME: "as clean-fid does, bicubic and antialiased",
}
# Images, real ones and others, that KID, precision and recall look at unless TEST.SUBSET says how
# many: quadratic in their number.
SUBSET = dict.fromkeys(EMBEDDED, 2_000)
USUAL_SUBSET = 10_000


class Extractor:
    """One of torch-fidelity's feature extractors, or a model of timm, fed by all processes.

    Attributes:
        name: cfg.TEST.EXTRACTOR.
        weights: the file of its weights, None if timm has it.
        digest: the sha256 of that file, or of the weights of timm's model.
        layer: the name of the features.
        width: of the features.
        has_classes: whether there are logits too, for IS.
        device: where it runs.

    Raises:
        UserError: its weights are missing, damaged or not for it.
    """

    def __init__(self, cfg: CfgNode, device: str | torch.device) -> None:
        self.name = cfg.TEST.EXTRACTOR
        self.device = torch.device(device)
        self.has_classes = not self.name.startswith(PREFIX)
        load = self._torch_fidelitys if self.has_classes else self._timms
        self.model = load(cfg).to(self.device)

    def _timms(self, cfg: CfgNode) -> nn.Module:
        given = cfg.TEST.EXTRACTOR_WEIGHTS
        self.weights = Path(given).expanduser() if given else None
        for turn in range(distributed.world_size()):
            if turn == distributed.rank():
                model = TimmExtractor(self.name[len(PREFIX) :], self.weights)
            distributed.barrier()
        self.digest = _checksum(model.state_dict())
        self.layer, self.width = "before the classifier", model.width()
        return model

    def _torch_fidelitys(self, cfg: CfgNode) -> nn.Module:
        find = trained_weights if self.name in EMBEDDED else inception_weights
        for turn in range(distributed.world_size()):
            if turn == distributed.rank():  # the first on each disk trains or downloads them
                self.weights = find(cfg)
            distributed.barrier()
        self.digest = sha256(self.weights)
        self.layer, self.width = LAYERS[self.name][0], WIDTH[self.name]
        clean_inception.register()
        # torch-fidelity would run code found in the file; after this there is none.
        read_checkpoint(self.weights)
        try:
            return create_feature_extractor(
                self.name,
                list(LAYERS[self.name]),
                cuda=False,  # its default is True; the device is ours to choose
                feature_extractor_weights_path=str(self.weights),
                verbose=False,
            )
        except RuntimeError as error:  # a page of names and shapes
            raise UserError(f"{self.weights}: not the weights of {self.name}") from error

    def describe(self) -> str:
        """One line: the extractor, the file of its weights, and its checksum."""
        if self.name in EMBEDDED:
            about = embedded_extractor.describe(self.weights)
        elif not self.has_classes:
            about = "a model of timm: not comparable with Inception"
        elif self.digest.startswith(PUBLISHED):
            about = "Inception of 2015-12-05, the published weights"
        else:
            about = "NOT the published Inception weights: not comparable with anything"
        if self.name in RESIZING:
            about += f"; images are resized {RESIZING[self.name]}"
        return f"extractor {self.name}: {about}; {self.weights or 'timm'}, sha256 {self.digest}"

    def features(
        self, batches: Iterable[tuple[Tensor, int]], total: int | None, what: str
    ) -> tuple[Tensor, ...] | None:
        """All that :meth:`stream` yields, whole; None but in the main process."""
        main = distributed.is_main()
        kept = [found for found in self.stream(batches, total, what) if main]
        return tuple(torch.cat(layer) for layer in zip(*kept)) if main else None

    @torch.no_grad()
    def stream(
        self, batches: Iterable[tuple[Tensor, int]], total: int | None, what: str
    ) -> Iterator[tuple[Tensor, ...]]:
        """Features, and logits if there are any, of all processes' images: in order, by batches.

        Args:
            batches: this process's :func:`share` of a batch, (n, 3, H, W) uint8, and the number
                of images in the whole batch.
            total: the number of all images, for the progress bar.
            what: their name, there and in an error.

        Yields:
            One or two tensors (n, width), float32 on the CPU, in every process.

        Raises:
            UserError: a feature is NaN or infinite; or there is no image.
        """
        main = distributed.is_main()
        seen = 0
        with tqdm(total=total, desc=what, unit="img", disable=None if main else True) as bar:
            for images, size in batches:
                found = []
                for part in self.model(images.to(self.device)):
                    whole = distributed.gather(part)[:size]
                    if not whole.isfinite().all():
                        raise UserError(
                            f"{what}: the extractor {self.name} gives NaN or infinity from number "
                            f"{seen} on; the weights in {self.weights} may be damaged"
                        )
                    found.append(whole.cpu())
                yield tuple(found)
                seen += size
                bar.update(size)
        if not seen:
            raise UserError(f"{what}: there is no image")


def share(start: int, stop: int) -> Tensor:
    """This process's part of start ... stop-1, int64 indices.

    All parts are of one size, as gathering needs it: the last index is repeated where they do not
    come out even. Their concatenation is in order and begins with all the indices.
    """
    each = -(-(stop - start) // distributed.world_size())
    first = start + distributed.rank() * each
    return torch.arange(first, first + each).clamp(max=stop - 1)


def shares(num: int, batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """(:func:`share`, size of the whole batch) of batches with `batch_size` per process."""
    step = batch_size * distributed.world_size()
    for start in range(0, num, step):
        stop = min(start + step, num)
        yield share(start, stop), stop - start


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
            torch.save({**content, "key": digest, "sum": _checksum(content)}, file)
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
        if given == {"key": digest, "sum": _checksum(content)}:
            mu, sigma, features = (content[name] for name in ("mu", "sigma", "features"))
            return RealStatistics(mu.numpy(), sigma.numpy(), features)
    except FileNotFoundError:
        return None
    except (UserError, OSError, AttributeError, KeyError, TypeError):
        pass
    log.warning("%s: damaged; computing the statistics again", path)
    return None


def _checksum(content: dict[str, Tensor]) -> str:
    """The sha256 of some tensors' names and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(content.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()


def _from_main(value: Any) -> bool:
    """The main process's value, in every process."""
    return bool(distributed.gather(torch.tensor([float(value)]))[0])
