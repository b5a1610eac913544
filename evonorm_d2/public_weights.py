"""Published ResNets of other projects as backbones: their weights by Detectron2's names.

Their BatchNorm and GroupNorm stay what they are: an EvoNorm has no use for such weights.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from torch import Tensor

from evonorm_runs.errors import UserError, user_errors

from .checkpoint import read_weights
from .resnet import BLOCKS_PER_STAGE

SOURCES = ("torchvision", "timm", "detectron2")
# ImageNet's colours in the order that the weights were trained with, as torchvision's documentation
# and Detectron2's configs/Misc/mask_rcnn_R_50_FPN_3x_gn.yaml with the defaults give them.
_RGB = ("RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
_BGR = ("BGR", [103.53, 116.28, 123.675], [1.0, 1.0, 1.0])
_TORCH_NAME = re.compile(
    r"(fc|conv1|bn1|layer[1-4]\.\d+\.((conv|bn)[123]|downsample\.[01]))"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)


class Public(NamedTuple):
    """Weights by Detectron2's names, and the settings that a config must have for them."""

    weights: dict[str, Tensor]
    settings: dict[str, Any]


def read_public(source: str, path: Path, norm: str = "") -> Public:
    """The weights in a file of one of SOURCES.

    "torchvision" and "timm" are state dicts of a ResNet, ResNeXt or wide ResNet with BatchNorm, of
    the layout that both have (timm's with other stems or shortcuts are refused); "detectron2" is
    R-50-GN or R-101-GN of its model zoo.

    Args:
        norm: what MODEL.RESNETS.NORM shall be; "" for Detectron2's name of the weights' norm.

    Raises:
        UserError: a damaged file, another network's, or a norm for which the weights are nonsense.
    """
    with user_errors(OSError):
        found = _read(path)
    if source == "detectron2":
        weights, own, colours = _from_caffe2(found, path), "GN", _BGR
    else:
        weights, own, colours = _from_torch(found, path, source), "BN", _RGB
    known = {"BN": ("BN", "FrozenBN", "SyncBN", "BN-ReLU"), "GN": ("GN", "GN-ReLU")}[own]
    if norm and norm not in known:
        raise UserError(
            f"--norm {norm}: {path} was trained with {own}, whose weights are nonsense in another "
            f"norm; name one of {', '.join(known)}, or train a classifier with {norm} "
            "(tools/train_classifier.py)"
        )
    order, mean, std = colours
    settings = {
        **_layout(weights, path),
        "MODEL.RESNETS.NORM": norm or own,
        "MODEL.EVONORM.NUM_GROUPS": 32,
        "MODEL.EVONORM.GROUP_SIZE": 0,
        "MODEL.EVONORM.EPS": 1e-5,
        "MODEL.EVONORM.LINEAR": "",
        "INPUT.FORMAT": order,
        "MODEL.PIXEL_MEAN": mean,
        "MODEL.PIXEL_STD": std,
    }
    return Public(weights, settings)


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError  # comes with timm, whose files these are
        from safetensors.torch import load_file

        with user_errors(SafetensorError, prefix=f"{path}: damaged, or not a checkpoint: "):
            return load_file(path)
    data = read_weights(str(path))
    for key in ("state_dict", "blobs"):
        data = data[key] if isinstance(data.get(key), dict) else data
    return data


def _from_torch(state: dict[str, Any], path: Path, source: str) -> dict[str, Tensor]:
    odd = [key for key in state if not _TORCH_NAME.fullmatch(str(key))]
    if odd or "layer4.0.conv1.weight" not in state:
        what = f"it has {odd[0]}" if odd else "it has no layer4.0.conv1.weight"
        raise UserError(
            f"{path}: not a ResNet of {source} in Detectron2's layout, as {what}; ResNets, "
            "ResNeXts and wide ResNets with one 7x7 convolution in the stem are"
        )
    if "bn1.running_var" not in state:
        raise UserError(f"{path}: its norm is not BatchNorm, as it has no bn1.running_var")
    return {_detector_name(key): value for key, value in state.items()}


def _detector_name(key: str) -> str:
    key = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", key)
    key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    key = re.sub(r"bn(\d)", r"conv\1.norm", key)
    return key if key.startswith(("res", "fc")) else f"stem.{key}"


def _from_caffe2(blobs: dict[str, Any], path: Path) -> dict[str, Tensor]:
    if "conv1_gn_s" not in blobs:
        raise UserError(
            f"{path}: not R-50-GN or R-101-GN of Detectron2's model zoo, as it has no conv1_gn_s; "
            "the zoo's other files are for MODEL.WEIGHTS as they are"
        )
    kept = {k: v for k, v in blobs.items() if re.fullmatch(r"(conv1|res[2-5]_\d+_branch\w+)_.*", k)}
    return convert_c2_detectron_names(
        {k: v for k, v in kept.items() if not k.endswith("_momentum")}
    )[0]


def _layout(weights: dict[str, Any], path: Path) -> dict[str, Any]:
    """The keys of the ResNet that has these weights."""
    names = [re.match(r"res(\d)\.(\d+)\.", key) for key in weights]
    blocks = tuple(
        1 + max((int(x[2]) for x in names if x and int(x[1]) == stage), default=-1)
        for stage in range(2, 6)
    )
    bottleneck = "res2.0.conv3.weight" in weights
    depths = [d for d, n in BLOCKS_PER_STAGE.items() if n == blocks and (d >= 50) == bottleneck]
    if not depths:
        raise UserError(f"{path}: no ResNet of Detectron2's has {blocks} blocks in its stages")
    last = weights[f"res2.0.conv{3 if bottleneck else 2}.weight"]
    layout = {
        "MODEL.RESNETS.DEPTH": depths[0],
        "MODEL.RESNETS.STEM_OUT_CHANNELS": weights["stem.conv1.weight"].shape[0],
        "MODEL.RESNETS.RES2_OUT_CHANNELS": last.shape[0],
    }
    if bottleneck:
        width, width_per_group = weights["res2.0.conv2.weight"].shape[:2]
        layout["MODEL.RESNETS.NUM_GROUPS"] = width // width_per_group
        layout["MODEL.RESNETS.WIDTH_PER_GROUP"] = width_per_group
        layout["MODEL.RESNETS.STRIDE_IN_1X1"] = False
    return layout
