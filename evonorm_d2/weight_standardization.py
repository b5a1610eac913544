"""Weight standardisation: kernels with mean 0 and variance 1, for the norm that follows them.

S. Qiao, H. Wang, C. Liu, W. Shen and A. Yuille, Micro-Batch Training with Batch-Channel
Normalization and Weight Standardization, 2019 (arXiv:1903.10520).
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-5  # under the root, as in the paper


def standardize(weight: Tensor) -> Tensor:
    """A kernel (out, in, height, width), standardised over the inputs of each output."""
    variance, mean = torch.var_mean(weight, (1, 2, 3), correction=0, keepdim=True)
    return (weight - mean) * torch.rsqrt(variance + EPS)


class StandardizedConv2d(Conv2d):
    """Detectron2's `Conv2d`, its kernel standardised in each call. The parameter stays as it is."""

    def forward(self, x: Tensor) -> Tensor:
        weight = standardize(self.weight)
        x = F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def standardize_weights(model: nn.Module) -> nn.Module:
    """Standardise the kernels of those convolutions of a detector that have a norm, in place.

    They are Detectron2's `Conv2d` with a `norm`: in ResNets, the FPN, the RPN and the RoI heads.
    The convolutions that predict have none and stay as they are. The names and shapes of parameters
    stay too, so a checkpoint fits a model without standardisation, which would compute nonsense.

    Returns:
        the model itself.
    """
    for module in model.modules():
        if type(module) is Conv2d and module.norm is not None:
            module.__class__ = StandardizedConv2d
    return model


@META_ARCH_REGISTRY.register()
class WeightStandardizedRCNN(GeneralizedRCNN):
    """`GeneralizedRCNN`, with its weights standardised; the arguments are the stock one's."""

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        standardize_weights(self)
