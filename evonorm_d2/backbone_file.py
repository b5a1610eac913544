"""Files for MODEL.WEIGHTS with a backbone alone, which say what a config must have to use them.

A file is a pickle of arrays and plain containers, as those of Detectron2's model zoo are:

model                 {"res2.0.conv1.weight": array, ...}; Detectron2 finds places by these names
__author__            whose weights they are
matching_heuristics   True
backbone              settings: {"MODEL.RESNETS.DEPTH": 50, "INPUT.FORMAT": "RGB", ...}
                      norm_acts: {"res2.0.conv1.norm": whose weights a norm has, ...}
                      accuracy: in percent, or None; config: of the classifier's run, or ""
"""

from __future__ import annotations

import math
import pickle
import re
import shlex
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from torch import Tensor, nn

from evonorm import build_norm_act, is_norm_act
from evonorm.base import NormAct
from evonorm.registry import formula_of
from evonorm_runs.config import value
from evonorm_runs.errors import UserError
from evonorm_runs.files import atomic_write

# Names of one norm, in Detectron2 and here.
_ALIKE = [
    {"BN-ReLU", "BN", "SyncBN", "FrozenBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"},
    {"GN-ReLU", "GN"},
]
# What Detectron2's own norms have, which read none of MODEL.EVONORM.
_OF_STOCK = {"NUM_GROUPS": 32, "GROUP_SIZE": 0, "EPS": 1e-5, "LINEAR": ""}
_PARTS = re.compile(r"(stem|res[2-5])\.(?!.*num_batches_tracked$)")


def write_backbone(
    path: Path,
    weights: dict[str, Tensor],
    settings: dict[str, Any],
    author: str,
    accuracy: float | None = None,
    config: str = "",
) -> None:
    """Write a file as described above.

    Args:
        weights: of a ResNet, by Detectron2's names; others than those of stem and stages, such as
            a classifier's `linear`, are left out. Their metadata, if any, tells whose norms' they
            are.
        settings: keys of a Detectron2 config and the values that they must have.

    Raises:
        UserError: the file exists, or the disk is full.
    """
    if path.exists():
        raise UserError(f"{path} exists: name another file by -o, or delete it first")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    metadata = getattr(weights, "_metadata", {})
    backbone = {
        "settings": settings,
        "norm_acts": {k: v["norm_act"] for k, v in metadata.items() if v.get("norm_act")},
        "accuracy": accuracy,
        "config": config,
    }
    content = {
        "model": {k: np.array(v) for k, v in weights.items() if _PARTS.match(k)},
        "__author__": author,
        "matching_heuristics": True,
        "backbone": backbone,
    }
    with atomic_write(path) as file:
        pickle.dump(content, file, protocol=4)


def check_backbone(settings: dict[str, Any], cfg: CfgNode, path: str) -> None:
    """Raise a UserError of one line, which says what to set, if the config has other settings."""
    wanted = _differing(settings, cfg)
    if wanted:
        pairs = " ".join(f"{key} {_written(x)}" for key, x in wanted.items())
        raise UserError(
            f"MODEL.WEIGHTS {path}: its weights need settings that the config does not have: "
            f"set {pairs}"
        )


def _differing(settings: dict[str, Any], cfg: CfgNode) -> dict[str, Any]:
    """The settings that the config does not have."""
    norm_key = "MODEL.RESNETS.NORM"
    norm = settings[norm_key]
    found = {}
    if _same_norm(norm, value(cfg, norm_key)):
        norm = value(cfg, norm_key)  # its other name, which the user chose
    else:
        found[norm_key] = norm
    for key, wanted in settings.items():
        area, _, option = key.rpartition(".")
        if key == norm_key or (area == "MODEL.EVONORM" and not _concerns(option, settings)):
            continue
        has = _option(option, norm, cfg) if area == "MODEL.EVONORM" else value(cfg, key)
        if not _equal(has, wanted):
            found[key] = wanted
            if area == "MODEL.EVONORM" and not is_norm_act(norm):
                found[norm_key] = settings[norm_key]  # which reads MODEL.EVONORM
    return found


def _same_norm(a: str, b: Any) -> bool:
    if a == b or any({a, b} <= names for names in _ALIKE if isinstance(b, str)):
        return True
    formulas = [formula_of(x) if is_norm_act(x) else None for x in (a, b)]
    return None not in formulas and str(formulas[0]) == str(formulas[1])


def _concerns(option: str, settings: dict[str, Any]) -> bool:
    """Whether this option of MODEL.EVONORM changes anything in these weights' norms."""
    if option not in ("NUM_GROUPS", "GROUP_SIZE"):
        return True
    names = settings["MODEL.RESNETS.NORM"], settings.get("MODEL.EVONORM.LINEAR", "")
    texts = [str(formula_of(x) or x) if is_norm_act(x) else x for x in names]
    return any("_g(" in text or text.startswith("GN") for text in texts)


def _option(option: str, norm: str, cfg: CfgNode) -> Any:
    """What a norm of this name has in a model of this config."""
    if not is_norm_act(norm) or "EVONORM" not in cfg.MODEL:
        return _OF_STOCK[option]
    has = cfg.MODEL.EVONORM[option]
    return getattr(build_norm_act(norm, 32), "eps", None) if has is None else has


def _equal(a: Any, b: Any) -> bool:
    if isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(b, float) and isinstance(a, (int, float)):
        return math.isclose(a, b, rel_tol=1e-4)
    return a == b


def _written(x: Any) -> str:
    """As it is typed in a shell."""
    return shlex.quote(f"[{','.join(map(str, x))}]" if isinstance(x, list) else str(x))


def with_writers(
    state: dict[str, Any], norm_acts: dict[str, str], model: nn.Module
) -> OrderedDict[str, Any]:
    """The state dict of a model with the metadata that the file's lacks: whose norms it holds.

    Args:
        norm_acts: of the file, by the ends of the modules' names.
    """
    result: OrderedDict[str, Any] = OrderedDict(state)
    metadata = {}
    for name, layer in model.named_modules():
        ends = (name.split(".", i)[-1] for i in range(name.count(".") + 1))
        writer = next((norm_acts[end] for end in ends if end in norm_acts), "")
        if writer and isinstance(layer, NormAct) and f"{name}.weight" in state:
            metadata[name] = {"version": NormAct._version, "norm_act": writer}
    result._metadata = metadata  # type: ignore[attr-defined]
    return result
