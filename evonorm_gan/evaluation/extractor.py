"""Features of images for the metrics: the extractors and their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch_fidelity.utils import create_feature_extractor
from tqdm import tqdm

from evonorm_runs import distributed
from evonorm_runs.errors import UserError
from evonorm_runs.files import read_checkpoint, sha256

from ..config import EMBEDDED
from . import clean_inception, embedded_extractor
from .embedded_extractor import trained_weights
from .inception import PUBLISHED, inception_weights
from .timm_extractor import PREFIX, TimmExtractor

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
        self.digest = checksum(model.state_dict())
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
            about = embedded_extractor.describe(self.name, self.weights)
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


def checksum(content: dict[str, Tensor]) -> str:
    """The sha256 of some tensors' names and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(content.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()
