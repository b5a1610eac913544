"""An op, a network and a score of one's own, as a user's module has them."""

import torch
from torch import nn

from evonorm import formula_of, register_function
from evonorm_search.anchors import register_anchor
from evonorm_search.scores import register_score

register_function("softsign", nn.functional.softsign)
register_function("lower", torch.minimum, inputs=2)


@register_anchor("Tiny")
def tiny(num_classes):
    layers = (nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


@register_anchor("NoNorm")
def no_norm(num_classes):
    return nn.Sequential(nn.Conv2d(3, num_classes, 16), nn.Flatten())


@register_anchor("Wrong")
def wrong(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())


@register_score("cheap")
def cheap(norm_act, result):
    """Accuracies, less a hundredth for each operation."""
    return [score - formula_of(norm_act).operations / 100 for score in result["scores"]]
