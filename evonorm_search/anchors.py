"""The networks that candidates are trained in: those of section 4.2, and small ones for a laptop.

A good layer works in all of them. Each candidate takes the place of a norm and the activation after
it; where no activation follows, its affine map stands alone (section 4.2, footnote 3). Squeeze-and-
excitation keeps its own activations.
"""

from __future__ import annotations

from typing import Any, Callable

from torch import nn

from evonorm import convert
from evonorm_classifier.models import (
    B0,
    Bottleneck,
    PreActResNet,
    conv,
    efficientnet,
    preact_resnet,
)

Factory = Callable[[int], nn.Module]  # number of classes -> images (N, 3, H, W) to scores


def build_anchor(name: str, norm_act: str, num_classes: int = 10, **options: Any) -> nn.Module:
    """A network of ANCHORS with a norm-act; images (N, 3, H, W) -> scores (N, num_classes).

    Args:
        norm_act: a name or a formula.
        options: of the norm-act; see :func:`evonorm.build_norm_act`.

    Raises:
        ValueError: no such anchor or norm-act.
    """
    if name not in ANCHORS:
        raise ValueError(f"no anchor is named {name!r}; known are {', '.join(ANCHORS)}")
    model = ANCHORS[name](num_classes)
    convert(model, norm_act, **options)
    return model


def register_anchor(name: str) -> Callable[[Factory], Factory]:
    """Decorator: makes a network of your own available under `name` in ANCHORS.

    The factory is called with the number of classes and returns a module: images (N, 3, H, W) ->
    scores (N, classes), with the norms and activations that :func:`evonorm.convert` swaps.

    Raises:
        ValueError: the name is taken.
    """

    def register(factory: Factory) -> Factory:
        if name in ANCHORS:
            raise ValueError(f"anchor {name!r} is registered already: choose another name")
        ANCHORS[name] = factory
        return factory

    return register


def resnet50_cifar(num_classes: int) -> nn.Module:
    """Pre-activation ResNet-50 of a quarter of the channels."""
    model = preact_resnet((3, 4, 6, 3), num_classes, width=0.25)
    return without_first_strides(model)


def mobilenet_v2_cifar(num_classes: int) -> nn.Module:
    """MobileNetV2 of half the channels."""
    from torchvision.models import mobilenet_v2  # slow to import

    return without_first_strides(mobilenet_v2(num_classes=num_classes, width_mult=0.5))


def efficientnet_cifar(num_classes: int) -> nn.Module:
    """EfficientNet-B0 of half the channels."""
    return without_first_strides(efficientnet(B0, num_classes, width=0.5))


def without_first_strides(model: nn.Module) -> nn.Module:
    """The model with stride 1 in its first two convolutions that halve the image (section 4.2).

    A projection beside the second one follows it.
    """
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    for m in strided[:2]:
        m.stride = (1, 1)
    for block in model.modules():
        shortcut = getattr(block, "shortcut", None)
        if shortcut is not None and strided[1] in block.children():
            shortcut.stride = (1, 1)
    return model


# Small ones, of the same kinds, for images of 16x16: some milliseconds a step on a CPU.


def resnet_small(num_classes: int) -> nn.Module:
    """Three pre-activation bottlenecks on maps of 16x16, 8x8 and 4x4: 11 layers."""
    return PreActResNet(Bottleneck, (1, 1, 1), [8, 16, 32], conv(3, 8, 3), num_classes)


def mobilenet_v2_small(num_classes: int) -> nn.Module:
    """Three inverted residuals: 11 layers, without dropout; the last has 96 channels, not 1280."""
    return mobilenet_v2_of(1, num_classes)


def mobilenet_v2_of(blocks: int, num_classes: int) -> nn.Module:
    """With so many blocks in each stage that halves the maps."""
    from torchvision.models import MobileNetV2
    from torchvision.ops import Conv2dNormActivation

    # expansion, channels, blocks, stride
    stages = [[1, 16, 1, 1], [4, 24, blocks, 2], [4, 32, blocks, 2]]
    model = MobileNetV2(num_classes, width_mult=0.5, inverted_residual_setting=stages)
    channels = model.features[-1][0].in_channels
    model.features[-1] = Conv2dNormActivation(
        channels, 96, kernel_size=1, activation_layer=nn.ReLU6
    )
    model.classifier = nn.Linear(96, num_classes)
    return on_whole_maps(model)


def efficientnet_small(num_classes: int) -> nn.Module:
    """Three inverted residuals with squeeze-and-excitation: 11 layers beside those."""
    stages = ((1, 3, 1, 16, 8, 1), (4, 3, 2, 8, 16, 1), (4, 5, 2, 16, 24, 1))
    model = efficientnet(stages, num_classes, dropout=0.0, last_channel=96)
    return on_whole_maps(model)


# Larger than the small ones, for those layers that a search found: see rerank.py.


def resnet_medium(num_classes: int) -> nn.Module:
    """Five pre-activation bottlenecks on maps of 16x16, 8x8 and 4x4: 17 layers."""
    return PreActResNet(Bottleneck, (1, 2, 2), [8, 24, 48], conv(3, 8, 3), num_classes)


def mobilenet_v2_medium(num_classes: int) -> nn.Module:
    """Five inverted residuals: 17 layers."""
    return mobilenet_v2_of(2, num_classes)


def efficientnet_medium(num_classes: int) -> nn.Module:
    """Five inverted residuals with squeeze-and-excitation: 17 layers beside those."""
    stages = ((1, 3, 1, 16, 8, 1), (4, 3, 2, 8, 24, 2), (4, 5, 2, 24, 40, 2))
    model = efficientnet(stages, num_classes, dropout=0.0, last_channel=96)
    return on_whole_maps(model)


def on_whole_maps(model: nn.Module) -> nn.Module:
    """The model with stride 1 in its first convolution."""
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.stride = (1, 1)
    return model


ANCHORS: dict[str, Factory] = {
    "ResNet50-CIFAR": resnet50_cifar,
    "MobileNetV2-CIFAR": mobilenet_v2_cifar,
    "EfficientNet-CIFAR": efficientnet_cifar,
    "ResNet-small": resnet_small,
    "MobileNetV2-small": mobilenet_v2_small,
    "EfficientNet-small": efficientnet_small,
    "ResNet-medium": resnet_medium,
    "MobileNetV2-medium": mobilenet_v2_medium,
    "EfficientNet-medium": efficientnet_medium,
}
