"""The classifiers: ResNets, MobileNetV2, MnasNet-B1 and EfficientNet-B0 and B5, with any norm-act.

The pre-activation ResNets of He et al. 2016, Identity Mappings in Deep Residual Networks
(arXiv:1603.05027), which the paper's tables have; those of Detectron2's layout, from
detector_resnet.py; MobileNetV2 of Sandler et al. 2018 (arXiv:1801.04381); MnasNet-B1 of Tan et
al. 2018 (arXiv:1807.11626); EfficientNets of Tan and Le 2019 (arXiv:1905.11946), whose
squeeze-and-excitation keeps its own activations.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from evonorm import convert, recompute
from evonorm_runs.errors import UserError, user_errors

from .detector_resnet import DEPTHS, DetectorResNet

SMALL = 64  # images up to this size are not reduced as early as ImageNet's


def build_model(cfg: CfgNode, num_classes: int) -> nn.Module:
    """The model of a config, (N, 3, H, W) -> (N, num_classes), each norm and its ReLU converted.

    Raises:
        UserError: an impossible number of groups, or a model without what MODEL.ZERO_INIT_LAST,
            DROPOUT, DROP_CONNECT or DEPTHWISE_INIT concerns.
    """
    model = MODELS[cfg.MODEL.NAME](num_classes, cfg.MODEL.WIDTH, cfg.INPUT.SIZE)
    _set_dropout(model, cfg)
    if cfg.MODEL.DEPTHWISE_INIT == "tensorflow":
        _draw_as_tensorflow(model, cfg.MODEL.NAME)
    with user_errors(ValueError, TypeError, prefix="MODEL: "):
        convert(model, cfg.MODEL.NORM, linear=cfg.MODEL.LINEAR, **_norm_options(cfg))
    if cfg.MODEL.ZERO_INIT_LAST:
        if not isinstance(model, DetectorResNet):
            raise UserError(
                f"MODEL.ZERO_INIT_LAST is True, but MODEL.NAME is {cfg.MODEL.NAME}, whose blocks "
                f"do not end in a norm; those of {', '.join(DETECTOR_MODELS)} do"
            )
        model.zero_last_norms()
    return recompute(model) if cfg.MODEL.RECOMPUTE else model


def _norm_options(cfg: CfgNode) -> dict[str, Any]:
    """The options of the norm-acts that the config sets."""
    node = cfg.MODEL.BN if cfg.MODEL.NORM.startswith("BN-") else cfg.MODEL.EVONORM
    found = {"num_groups": cfg.MODEL.NUM_GROUPS, "eps": node.EPS, "momentum": node.MOMENTUM}
    found["group_size"] = cfg.MODEL.EVONORM.GROUP_SIZE
    return {option: value for option, value in found.items() if value}


def _set_dropout(model: nn.Module, cfg: CfgNode) -> None:
    """Set the dropout before the last layer, and the rates of the blocks' drop-connect."""
    from torchvision.ops import StochasticDepth  # slow to import

    rates = {"DROPOUT": cfg.MODEL.DROPOUT, "DROP_CONNECT": cfg.MODEL.DROP_CONNECT}
    for (key, rate), kind in zip(rates.items(), (nn.Dropout, StochasticDepth)):
        if rate is None:
            continue
        layers = [m for m in model.modules() if isinstance(m, kind)]
        if rate and not layers:
            raise UserError(f"MODEL.{key} is {rate}, but {cfg.MODEL.NAME} has no place for it")
        for i, layer in enumerate(layers):
            layer.p = rate * i / len(layers) if kind is StochasticDepth else rate


@torch.no_grad()
def _draw_as_tensorflow(model: nn.Module, name: str) -> None:
    """Scale the weights of depthwise convolutions to a variance of 2 / (kernel's area).

    torchvision's is smaller by the number of channels, which it counts as the kernel's outputs.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    if not layers:
        raise UserError(
            f"MODEL.DEPTHWISE_INIT is tensorflow, but {name} has no depthwise convolution"
        )
    for layer in layers:
        layer.weight.mul_(layer.groups**0.5)


def conv(in_channels: int, channels: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each after a norm and a ReLU; (N, C, H, W) -> (N, channels, h, w)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(in_channels), nn.ReLU()
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.norm2, self.relu2 = nn.BatchNorm2d(channels), nn.ReLU()
        self.conv2 = conv(channels, channels, 3)
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.norm1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        y = self.conv1(y)
        return x + self.conv2(self.relu2(self.norm2(y)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each after a norm and a ReLU; gives 4 * channels."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(in_channels), nn.ReLU()
        self.conv1 = conv(in_channels, channels, 1)
        self.norm2, self.relu2 = nn.BatchNorm2d(channels), nn.ReLU()
        self.conv2 = conv(channels, channels, 3, stride)
        self.norm3, self.relu3 = nn.BatchNorm2d(channels), nn.ReLU()
        self.conv3 = conv(channels, 4 * channels, 1)
        self.shortcut = _shortcut(in_channels, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.norm1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        y = self.conv2(self.relu2(self.norm2(self.conv1(y))))
        return x + self.conv3(self.relu3(self.norm3(y)))


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Conv2d | None:
    """A projection of the block's first activations, or None for the identity."""
    return conv(in_channels, channels, 1, stride) if stride > 1 or in_channels != channels else None


class PreActResNet(nn.Module):
    """ResNet-v2: images (N, 3, H, W) -> scores (N, num_classes).

    Args:
        block: the class of the blocks, in all stages.
        depths: the number of blocks of each stage.
        widths: the `channels` of each stage; all stages but the first halve the size.
        stem: the layers before the first stage, which give widths[0] channels.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        widths: list[int],
        stem: nn.Module,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stem = stem
        channels, blocks = widths[0], []
        for stage, (depth, width) in enumerate(zip(depths, widths)):
            for i in range(depth):
                blocks.append(block(channels, width, 2 if stage and not i else 1))
                channels = width * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.relu = nn.BatchNorm2d(channels), nn.ReLU()
        self.fc = nn.Linear(channels, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.blocks(self.stem(x))))
        return self.fc(torch.mean(x, (2, 3)))


def preact_resnet8(num_classes: int, width: float = 1.0, size: int = 32) -> PreActResNet:
    """For images of 32x32: stages of 16, 32 and 64 channels on maps of 16x16, 8x8 and 4x4."""
    widths = [round(c * width) for c in (16, 32, 64)]
    return PreActResNet(BasicBlock, (1, 1, 1), widths, conv(3, widths[0], 3, 2), num_classes)


def preact_resnet(
    depths: tuple[int, ...], num_classes: int, width: float = 1.0, size: int = 224
) -> PreActResNet:
    """The ResNets for ImageNet, of bottleneck blocks."""
    widths = [round(c * width) for c in (64, 128, 256, 512)]
    stem = nn.Sequential(conv(3, widths[0], 7, 2), nn.MaxPool2d(3, 2, padding=1))
    return PreActResNet(Bottleneck, depths, widths, stem, num_classes)


def mobilenet_v2(num_classes: int, width: float = 1.0, size: int = 224) -> nn.Module:
    """torchvision's MobileNetV2. Small images are halved four times instead of five."""
    from torchvision.models import mobilenet_v2 as build  # slow to import

    return _on_small_images(build(num_classes=num_classes, width_mult=width), size)


def mnasnet_b1(num_classes: int, width: float = 1.0, size: int = 224) -> nn.Module:
    """torchvision's MNASNet, which is MnasNet-B1. Small images are halved four times."""
    from torchvision.models import MNASNet  # slow to import

    return _on_small_images(MNASNet(width, num_classes), size)


def _on_small_images(model: nn.Module, size: int) -> nn.Module:
    if size <= SMALL:
        strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
        strided[1].stride = (1, 1)
    return model


# Of EfficientNet-B0's stages: expansion, kernel, stride, channels in and out, blocks.
B0 = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


def efficientnet(
    stages: tuple[tuple[int, ...], ...],
    num_classes: int,
    width: float = 1.0,
    dropout: float = 0.2,
    last_channel: int | None = None,
    depth: float = 1.0,
    drop_connect: float | None = None,
) -> nn.Module:
    """torchvision's EfficientNet of these stages; its drop-connect is `dropout` by default."""
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig  # slow to import

    settings = [MBConvConfig(*stage, width_mult=width, depth_mult=depth) for stage in stages]
    options = {"num_classes": num_classes, "last_channel": last_channel}
    drop_connect = dropout if drop_connect is None else drop_connect
    return EfficientNet(settings, dropout, drop_connect, **options)


def efficientnet_b0(num_classes: int, width: float = 1.0, size: int = 224) -> nn.Module:
    """torchvision's EfficientNet-B0. Small images are halved four times instead of five."""
    return _on_small_images(efficientnet(B0, num_classes, width), size)


def efficientnet_b5(num_classes: int, width: float = 1.0, size: int = 456) -> nn.Module:
    """torchvision's EfficientNet-B5. Small images are halved four times instead of five."""
    model = efficientnet(B0, num_classes, 1.6 * width, 0.4, depth=2.2, drop_connect=0.2)
    return _on_small_images(model, size)


def detector_resnet(
    depth: int, num_classes: int, width: float = 1.0, size: int = 224
) -> DetectorResNet:
    """A ResNet that tools/export_backbone.py makes a detector's backbone of."""
    return DetectorResNet(depth, num_classes, width)


DETECTOR_MODELS = {f"resnet{depth}": partial(detector_resnet, depth) for depth in DEPTHS}
MODELS = {
    "preact_resnet8": preact_resnet8,
    "preact_resnet50": partial(preact_resnet, (3, 4, 6, 3)),
    "preact_resnet101": partial(preact_resnet, (3, 4, 23, 3)),
    "mobilenet_v2": mobilenet_v2,
    "mnasnet_b1": mnasnet_b1,
    "efficientnet_b0": efficientnet_b0,
    "efficientnet_b5": efficientnet_b5,
    **DETECTOR_MODELS,
}
