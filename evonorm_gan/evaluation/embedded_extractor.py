"""Small classifiers of the embedded data sets, whose features stand in for Inception's there.

Inception has never seen digits or garments of 32x32 pixels. The numbers that an extractor of these
gives compare runs on its data set with each other, and with nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from tqdm import tqdm

from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import atomic_write, read_checkpoint

from ..config import EMBEDDED, get_cfg
from ..data import open_dataset, to_float, train_batches

log = logging.getLogger(__name__)

LAYERS = ("penultimate", "logits")
SIZE = 32  # pixels; other images are resized
WIDTH = 128
STEPS, BATCH = {"digits": 400, "garments": 1200}, 64
VERSION = 1  # raise it when this file no longer trains the same weights


class EmbeddedExtractor(FeatureExtractorBase):
    """A classifier as an extractor of torch-fidelity, which prescribes these arguments.

    Features: "penultimate" (N, 128), "logits" (N, 10).
    """

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | None = None,
        feature_extractor_internal_dtype: str | None = None,
        **settings: Any,  # torch-fidelity hands all of its own over
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_internal_dtype not in (None, "float32"):
            raise ValueError(f"dtype {feature_extractor_internal_dtype!r}; only float32 is there")
        if feature_extractor_weights_path is None:
            raise ValueError("feature_extractor_weights_path is missing")
        self.model = build_classifier()
        self.model.load_state_dict(read_checkpoint(feature_extractor_weights_path)["model"])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features of images (N, 3, H, W) uint8, in the order asked for."""
        x = to_float(images)
        if x.shape[-2:] != (SIZE, SIZE):
            x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True)
        penultimate = self.model[:-1](x)
        found = dict(zip(LAYERS, (penultimate, self.model[-1](penultimate))))
        return tuple(found[layer] for layer in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return LAYERS

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return LAYERS[metric == "isc"]

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)


def build_classifier() -> nn.Sequential:
    """(N, 3, 32, 32) floats in [-1, 1] to (N, 10) logits; the last layer is the linear one."""
    layers: list[nn.Module] = []
    for wide, out, kernel, stride in ((3, 32, 5, 2), (32, 64, 3, 2), (64, WIDTH, 3, 1)):
        conv = nn.Conv2d(wide, out, kernel, stride, padding=kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))


def register() -> None:
    """Let torch-fidelity know the extractors by their names."""
    for name in EMBEDDED:
        if name not in FEATURE_EXTRACTORS_REGISTRY:
            register_feature_extractor(name, EmbeddedExtractor)


def trained_weights(cfg: CfgNode) -> Path:
    """The file of cfg.TEST.EXTRACTOR's weights in cfg.TEST.CACHE_DIR; trains it if it isn't there.

    Training takes seconds on a CPU, where it always runs, and the seed is fixed.
    """
    register()
    train, val = (open_dataset(_own_config(cfg), split) for split in ("train", "val"))
    steps = STEPS[cfg.TEST.EXTRACTOR]
    key = {"data": [train.fingerprint(), val.fingerprint()], "steps": steps, "batch": BATCH}
    key |= {"version": VERSION, "torch": torch.__version__}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = Path(cfg.TEST.CACHE_DIR) / f"{cfg.TEST.EXTRACTOR}-classifier-{digest[:16]}.pth"
    if _whole(path, digest):
        return path
    model = train_classifier(train, steps)
    content = {"model": model.state_dict(), "accuracy": accuracy(model, val), "key": digest}
    with user_errors(OSError, prefix=f"{path}: "):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            torch.save(content, file)
    return path


def describe(name: str, path: Path) -> str:
    """What the file of an extractor's weights holds."""
    percent = 100 * read_checkpoint(path)["accuracy"]
    return f"classifier of the {name}, {percent:.1f} % of the validation images right"


def train_classifier(dataset: Any, steps: int) -> nn.Sequential:
    """A classifier trained on (uint8 images, classes); in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_classifier()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    batches = train_batches(dataset, BATCH, seed=0, flip=False)
    for _ in tqdm(range(steps), desc="training the extractor", disable=None):
        images, labels = next(batches)
        loss = F.cross_entropy(model(to_float(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, dataset: Any) -> float:
    """The share of a data set's images whose class the model finds."""
    indices = torch.arange(len(dataset)).split(BATCH)
    right = 0
    for index in indices:
        images, labels = zip(*(dataset[i] for i in index.tolist()))
        found = model(to_float(torch.stack(images))).argmax(1)
        right += (found == torch.tensor(labels)).sum().item()
    return right / len(dataset)


def _own_config(cfg: CfgNode) -> CfgNode:
    own = cfg.clone()
    own.defrost()
    own.DATA.NAME, own.MODEL.NUM_CLASSES, own.MODEL.RESOLUTION = cfg.TEST.EXTRACTOR, 10, SIZE
    own.DATA.RANDOM_CROP, own.DATA.ROOT = 0.0, get_cfg().DATA.ROOT
    return own


def _whole(path: Path, digest: str) -> bool:
    try:
        return read_checkpoint(path).get("key") == digest
    except FileNotFoundError:
        return False
    except (UserError, OSError):
        log.warning("%s: damaged; training the classifier again", path)
        return False
