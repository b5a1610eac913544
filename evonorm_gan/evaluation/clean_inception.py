"""Inception with images resized as clean-fid does it, for figures that compare with clean-fid's.

Parmar et al., On Aliased Resizing and Surprising Subtleties in GAN Evaluation, 2022
(arXiv:2104.11222).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

NAME = "inception-v3-clean"


class CleanInception(FeatureExtractorInceptionV3):
    """torch-fidelity's Inception; only the resizing is another one."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        # torch-fidelity resizes in the middle of its forward(), so what it made is replaced.
        self.Conv2d_1a_3x3.register_forward_pre_hook(lambda layer, args: (self.resized,))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features of images (N, 3, H, W) uint8, in the order asked for."""
        self.resized = (clean_resize(images, self.INPUT_IMAGE_SIZE) - 128) / 128
        found = super().forward(images)
        self.resized = None
        return found


def clean_resize(images: Tensor, size: int) -> Tensor:
    """Images (N, 3, H, W) as (N, 3, size, size): PIL's bicubic on floats, which PyTorch has too."""
    resized = F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
    return resized.clamp(0, 255)


def register() -> None:
    """Let torch-fidelity know the extractor by its name."""
    if NAME not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(NAME, CleanInception)
