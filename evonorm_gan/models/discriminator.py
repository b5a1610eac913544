"""The discriminator of BigGAN-deep (Brock et al. 2019, appendix B)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evonorm_runs.errors import UserError

from .architecture import LAST_MAP, attention_stage, stage_channels
from .layers import SelfAttention, conv, linear, look_up, spectral_norm


class DiscriminatorBlock(nn.Module):
    """Residual bottleneck block: (N, in, H, W) -> (N, out, H, W), halved in size if `down`.

    ReLU, 1x1 (to out/4), ReLU, 3x3, ReLU, 3x3, ReLU, [average pool], 1x1 (to out). The skip path
    gains its missing channels by a 1x1 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, down: bool) -> None:
        super().__init__()
        self.down = down
        mid = out_channels // 4
        self.convs = nn.ModuleList(
            [conv(in_channels, mid, 1), conv(mid, mid, 3), conv(mid, mid, 3)]
            + [conv(mid, out_channels, 1)]
        )
        more = out_channels - in_channels
        self.more = conv(in_channels, more, 1) if more else None

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for convolution in self.convs[:-1]:
            h = convolution(F.relu(h))
        h = F.relu(h)
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        skip = x if self.more is None else torch.cat([x, self.more(x)], 1)
        return self.convs[-1](h) + skip


class Discriminator(nn.Module):
    """(images, y) -> logits, with a projection on the class embedding (Miyato and Koyama 2018).

    Args:
        resolution: 32, 64, 96, 128, 256 or 512.
        ch: the width; 128 in the paper.
        num_classes: of the labels y.
        ends_at: the size of the last maps, from which on no stage halves them; by default 8 at
            32x32, 6 at 96x96 and 4 at the others, as in BigGAN-PyTorch.
        attention: the size of the maps that self-attention is at; 0: none; by default 64.
        depth: blocks of each stage.

    Raises:
        UserError: unknown resolution, a width that cannot be divided, or no such maps.
    """

    def __init__(
        self,
        resolution: int,
        ch: int,
        num_classes: int,
        ends_at: int | None = None,
        attention: int | None = None,
        depth: int = 2,
    ) -> None:
        super().__init__()
        channels = stage_channels("D", resolution, ch, attention)
        self.resolution = resolution
        self.num_classes = num_classes
        self.first = conv(3, channels[0], 3)
        size, ends_at = resolution, ends_at or LAST_MAP[resolution]
        blocks: list[nn.Module] = []
        for before, after in zip(channels, channels[1:]):
            blocks.append(DiscriminatorBlock(before, after, down=size > ends_at))
            blocks += [DiscriminatorBlock(after, after, down=False) for _ in range(depth - 1)]
            size = max(size // 2, ends_at)
        self.blocks = nn.ModuleList(blocks)
        stage = attention_stage("D", resolution, attention)
        self.attention = None if stage is None else SelfAttention(channels[stage + 1])
        self.attention_after = -1 if stage is None else depth * (stage + 1) - 1  # a block
        self.last = linear(channels[-1], 1)
        self.embedding = spectral_norm(nn.Embedding(num_classes, channels[-1]))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits (N,) of x being real.

        Args:
            x: images (N, 3, R, R) in [-1, 1].
            y: their class indices (N,), int64.

        Raises:
            UserError: another shape or dtype, or, on the CPU, a class index out of range.
        """
        wanted = (3, self.resolution, self.resolution)
        if x.shape[1:] != wanted or not x.is_floating_point():
            raise UserError(
                f"images should be of shape (N, {', '.join(map(str, wanted))}) and a "
                f"floating-point dtype; they are of shape {tuple(x.shape)} and {x.dtype}"
            )
        h = self.first(x)
        for i, block in enumerate(self.blocks):
            h = block(h)
            if i == self.attention_after:
                h = self.attention(h)
        h = F.relu(h).sum((2, 3))
        return self.last(h).squeeze(1) + (look_up(self.embedding, y, x.shape[0]) * h).sum(1)
