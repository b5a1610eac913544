"""ResNets in Detectron2's layout, with the names that a detector's backbone has for its weights.

Their activation follows the norm (He et al. 2015, Deep Residual Learning, arXiv:1512.03385) and a
stage's first block takes its stride in the 3x3 convolution. Norms are `nn.BatchNorm2d` and
activations `nn.ReLU` until :func:`evonorm.convert` swaps them; the ReLU after a sum stays.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Conv(nn.Conv2d):
    """A convolution without bias and the norm of its output, which is its child `norm`."""

    def __init__(self, in_channels: int, channels: int, size: int, stride: int = 1) -> None:
        super().__init__(in_channels, channels, size, stride, padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Stem(nn.Module):
    """(N, 3, H, W) -> (N, channels, H / 4, W / 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.relu = Conv(3, channels, 7, 2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.relu(self.conv1(x)), 3, 2, padding=1)


class Basic(nn.Module):
    """Two 3x3 convolutions; (N, C, H, W) -> (N, width, h, w)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.relu1 = Conv(in_channels, width, 3, stride), nn.ReLU()
        self.conv2 = Conv(width, width, 3)
        self.shortcut = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.relu1(self.conv1(x)))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))

    @property
    def last(self) -> Conv:
        return self.conv2


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; (N, C, H, W) -> (N, 4 * width, h, w)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.relu1 = Conv(in_channels, width, 1), nn.ReLU()
        self.conv2, self.relu2 = Conv(width, width, 3, stride), nn.ReLU()
        self.conv3 = Conv(width, 4 * width, 1)
        self.shortcut = _shortcut(in_channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        y = self.conv3(y)
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))

    @property
    def last(self) -> Conv:
        return self.conv3


def _shortcut(in_channels: int, channels: int, stride: int) -> Conv | None:
    """A projection of the block's input, or None for the identity."""
    return Conv(in_channels, channels, 1, stride) if stride > 1 or in_channels != channels else None


class DetectorResNet(nn.Module):
    """ResNet-18, 34, 50 or 101: images (N, 3, H, W) -> scores (N, num_classes).

    Args:
        depth: one of DEPTHS.
        width: multiplies the numbers of channels.
    """

    def __init__(self, depth: int, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        self.depth = depth
        block = Bottleneck if depth >= 50 else Basic
        channels = round(64 * width)
        self.stem = Stem(channels)
        self.stages = [f"res{i}" for i in range(2, 6)]
        for i, (name, blocks) in enumerate(zip(self.stages, DEPTHS[depth])):
            inner, stage = round(64 * 2**i * width), nn.Sequential()
            for k in range(blocks):
                stage.append(block(channels, inner, 2 if i and not k else 1))
                channels = inner * block.expansion
            self.add_module(name, stage)
        self.linear = nn.Linear(channels, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.res5(self.res4(self.res3(self.res2(self.stem(x)))))
        return self.linear(torch.mean(x, (2, 3)))

    def zero_last_norms(self) -> None:
        """Let each block start as its shortcut: the weight of its last norm becomes 0."""
        for block in (block for name in self.stages for block in getattr(self, name)):
            nn.init.zeros_(block.last.norm.weight)
