"""Any model of timm as an extractor of features: DINOv2, CLIP's image tower, a ConvNeXt, ..."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import read_checkpoint

PREFIX = "timm/"  # of TEST.EXTRACTOR


class TimmExtractor(nn.Module):
    """Images uint8 (N, 3, H, W) -> a tuple of features (N, width), from before the classifier.

    They are resized as a whole, bicubic and antialiased, to the model's own size, and normalised as
    the model was trained.

    Args:
        name: of timm's model, such as "vit_small_patch14_dinov2.lvd142m".
        weights: a file of its state dict, .pth or .safetensors; None: timm downloads its own.

    Raises:
        UserError: timm or its model is missing, or the weights are.
    """

    def __init__(self, name: str, weights: Path | None) -> None:
        super().__init__()
        try:
            import timm  # optional
        except ImportError as error:
            raise UserError(f"TEST.EXTRACTOR {PREFIX}{name} needs `pip install timm`") from error
        with user_errors(Exception, prefix=f"TEST.EXTRACTOR {PREFIX}{name}: "):  # or no network
            self.model = timm.create_model(name, pretrained=weights is None)
        if weights is not None:
            with user_errors(OSError, RuntimeError, prefix=f"{weights}: not of {name}: "):
                self.model.load_state_dict(_read(weights))
        self.model.reset_classifier(0)
        settings = timm.data.resolve_model_data_config(self.model)
        self.size = settings["input_size"][1:]
        for key in ("mean", "std"):
            value = 255 * torch.tensor(settings[key]).view(3, 1, 1)
            self.register_buffer(key, value, persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = images.float()
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True).clamp(0, 255)
        return (self.model((x - self.mean) / self.std).flatten(1).float(),)

    def width(self) -> int:
        """Of the features."""
        device = self.mean.device
        with torch.no_grad():
            (features,) = self(torch.zeros(1, 3, *self.size, dtype=torch.uint8, device=device))
        return math.prod(features.shape)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_checkpoint(path)
    from safetensors.torch import load_file  # timm has it

    return load_file(path)
