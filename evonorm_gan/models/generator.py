"""The generator of BigGAN-deep (Brock et al. 2019, appendix B), with any norm-act."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evonorm.recomputation import offer
from evonorm_runs.errors import UserError

from .architecture import attention_stage, first_map, stage_channels
from .layers import ConditionalNormAct, SelfAttention, conv, linear, look_up, norm_act, orthogonal


def upsample(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 2H, 2W), nearest."""
    return F.interpolate(x, scale_factor=2.0)


class GeneratorBlock(nn.Module):
    """Residual bottleneck block: x (N, in, H, W), c (N, dim_c) -> (N, out, H, W), 2H x 2W if `up`.

    Norm-act, 1x1 (to in/4); norm-act, [nearest x2], 3x3; norm-act, 3x3; norm-act, 1x1 (to out).
    The skip path drops the channels beyond `out`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dim_c: int,
        up: bool,
        norm: str,
        norm_options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.up = up
        mid = in_channels // 4
        widths = (in_channels, mid, mid, mid)
        self.norms = nn.ModuleList(
            ConditionalNormAct(norm, width, dim_c, norm_options) for width in widths
        )
        self.convs = nn.ModuleList(
            [conv(in_channels, mid, 1), conv(mid, mid, 3), conv(mid, mid, 3)]
            + [conv(mid, out_channels, 1)]
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = x
        for i, (norm, convolution) in enumerate(zip(self.norms, self.convs)):
            h = norm(h, c)
            if self.up and i == 1:
                h = offer(upsample(h), upsample, h)
            h = convolution(h)
        skip = x[:, : self.out_channels]
        return h + (upsample(skip) if self.up else skip)


class Generator(nn.Module):
    """(z, y) -> images.

    Args:
        resolution: 32, 64, 96, 128, 256 or 512.
        ch: the width; 128 in the paper.
        num_classes: of the labels y.
        norm: the norm-act of all sites: a name or a formula.
        norm_options: for :func:`evonorm.build_norm_act`; the layers' own defaults if None. The
            paper's are in :func:`evonorm_gan.config.norm_options`.
        dim_z: length of z.
        dim_embed: length of a class embedding.
        attention: the size of the maps that self-attention is at; 0: none; by default 64.
        depth: blocks of each stage.

    Raises:
        UserError: unknown resolution, norm or option, a width that cannot be divided, or no such
            maps.
    """

    def __init__(
        self,
        resolution: int,
        ch: int,
        num_classes: int,
        norm: str = "EvoNormS0",
        norm_options: dict[str, Any] | None = None,
        dim_z: int = 128,
        dim_embed: int = 128,
        attention: int | None = None,
        depth: int = 2,
    ) -> None:
        super().__init__()
        channels = stage_channels("G", resolution, ch, attention)
        options = norm_options or {}
        self.resolution = resolution
        self.ch = ch
        self.num_classes = num_classes
        self.dim_z = dim_z
        self.norm = norm
        dim_c = dim_z + dim_embed

        # One embedding for all sites, without spectral norm.
        self.embedding = orthogonal(nn.Embedding(num_classes, dim_embed))
        self.first_map = first_map(resolution)
        self.first = linear(dim_c, channels[0] * self.first_map**2)
        blocks: list[nn.Module] = []
        for before, after in zip(channels, channels[1:]):
            for up, out in [(False, before)] * (depth - 1) + [(True, after)]:
                blocks.append(GeneratorBlock(before, out, dim_c, up, norm, options))
        self.blocks = nn.ModuleList(blocks)
        stage = attention_stage("G", resolution, attention)
        self.attention = None if stage is None else SelfAttention(channels[stage + 1])
        self.attention_after = -1 if stage is None else depth * (stage + 1) - 1  # a block
        self.last_norm = norm_act(norm, channels[-1], **options)
        self.last = conv(channels[-1], 3, 3)

    def embed(self, y: Tensor) -> Tensor:
        """Class indices (N,), int64 -> embeddings (N, dim_embed)."""
        return look_up(self.embedding, y, y.numel())

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Images (N, 3, R, R) in [-1, 1].

        Args:
            z: (N, dim_z), floating-point.
            y: class indices (N,), int64; or embeddings (N, dim_embed), as for interpolation.

        Raises:
            UserError: another shape or dtype, or, on the CPU, a class index out of range.
        """
        c = self._condition(z, y)
        h = self.first(c).unflatten(1, (-1, self.first_map, self.first_map))
        for i, block in enumerate(self.blocks):
            h = block(h, c)
            if i == self.attention_after:
                h = self.attention(h)
        return torch.tanh(self.last(self.last_norm(h)))

    def _condition(self, z: Tensor, y: Tensor) -> Tensor:
        if z.dim() != 2 or z.shape[1] != self.dim_z or not z.is_floating_point():
            raise UserError(
                f"z should be of shape (N, {self.dim_z}) and a floating-point dtype; "
                f"it is of shape {tuple(z.shape)} and {z.dtype}"
            )
        if not y.is_floating_point():
            return torch.cat([z, look_up(self.embedding, y, z.shape[0])], 1)
        wanted = (z.shape[0], self.embedding.embedding_dim)
        if y.shape != wanted:
            raise UserError(
                f"y, as embeddings, should be of shape {wanted}; it is of shape {tuple(y.shape)}"
            )
        return torch.cat([z, y], 1)
