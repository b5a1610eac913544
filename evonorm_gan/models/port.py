"""The generator from the state dict of pytorch-pretrained-biggan, the PyTorch port of BigGAN-deep.

That package holds the weights which the authors of BigGAN released for TensorFlow Hub, for 128, 256
and 512 pixels; only the generator's were released.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from evonorm_runs.errors import UserError

from .architecture import STAGES
from .generator import Generator

NORM = "BN-ReLU"
BATCH_NORM_EPS = 1e-4


def from_port(state: Mapping[str, Tensor], truncation: float) -> Generator:
    """A generator in evaluation mode that gives the port's images.

    The port's spectral norm has an eps of 1e-4, which works in training only, so that nothing
    depends on it here.

    Args:
        state: `BigGAN(config).state_dict()` of the port, as in a released `pytorch_model.bin`.
        truncation: in (0, 1], of the z that the generator will get: selects the statistics of its
            BatchNorms, of which the port has a set for each of 0, 0.02, ..., 1.

    Raises:
        UserError: another truncation, or not such a state dict.
    """
    if not 0 < truncation <= 1:
        raise UserError(f"truncation is {truncation}, but should be more than 0 and at most 1")
    try:
        model = _empty(state)
        ours = _translate(state, truncation, model)
        model.load_state_dict(ours)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(
            f"not the state dict of a pytorch-pretrained-biggan model ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]})"
        ) from error
    return model.eval()


@torch.no_grad()
def make_trainable(model: Generator) -> None:
    """Let the last convolution be divided by its own largest singular value, as in training.

    That of an import is not (see :func:`_three_channels`). The norm-act before it takes the
    difference, so that the images stay as they are.
    """
    norm = model.last.parametrizations.weight[0]
    scale = norm._u.norm()
    norm._u /= scale
    for parameter in (model.last_norm.weight, model.last_norm.bias):
        parameter /= scale


def _empty(state: Mapping[str, Tensor]) -> Generator:
    """A generator of the shape that the state dict has."""
    dim_z, num_classes = state["embeddings.weight"].shape
    ch = len(state["generator.bn.weight"])
    blocks = {key.split(".")[2] for key in state if key.endswith("conv_0.bias")}
    sizes = {2 * (len(stages["G"]) - 1): size for size, stages in STAGES.items() if size >= 128}
    if len(blocks) not in sizes:
        raise UserError(f"a model of {len(blocks)} blocks; BigGAN-deep's has {_either(sizes)}")
    options = {"eps": BATCH_NORM_EPS}
    return Generator(sizes[len(blocks)], ch, num_classes, NORM, options, dim_z, dim_z)


def _either(values: Mapping[int, int]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}"


def _translate(state: Mapping[str, Tensor], truncation: float, model: Generator) -> dict:
    """The state dict of `model`."""
    ours = {"embedding.weight": state["embeddings.weight"].T}
    ours.update(_channels_first(_normalised("first", state, "generator.gen_z")))
    layer = 0
    for i, block in enumerate(model.blocks):
        for j in range(len(block.convs)):
            there, here = f"generator.layers.{layer}", f"blocks.{i}"
            ours.update(_normalised(f"{here}.convs.{j}", state, f"{there}.conv_{j}"))
            ours.update(_normalised(f"{here}.norms.{j}.gamma", state, f"{there}.bn_{j}.scale"))
            ours.update(_normalised(f"{here}.norms.{j}.beta", state, f"{there}.bn_{j}.offset"))
            statistics = _statistics(state, f"{there}.bn_{j}", truncation)
            ours.update({f"{here}.norms.{j}.norm.{k}": v for k, v in statistics.items()})
        layer += 1
        if i == model.attention_after:
            there = f"generator.layers.{layer}"
            for name, theirs in (("theta", "theta"), ("phi", "phi"), ("g", "g"), ("o", "o_conv")):
                weights = _normalised(f"attention.{name}", state, f"{there}.snconv1x1_{theirs}")
                ours.update(weights)
            ours["attention.gain"] = state[f"{there}.gamma"].reshape(())
            layer += 1
    for key in ("weight", "bias"):
        ours[f"last_norm.{key}"] = state[f"generator.bn.{key}"]
    statistics = _statistics(state, "generator.bn", truncation)
    ours.update({f"last_norm.{k}": v for k, v in statistics.items()})
    ours.update(_three_channels(_normalised("last", state, "generator.conv_to_rgb")))
    return ours


def _normalised(here: str, state: Mapping[str, Tensor], there: str) -> dict[str, Tensor]:
    """A spectrally normalised layer, in the names of PyTorch's parametrization."""
    weight = f"{here}.parametrizations.weight"
    layer = {
        f"{weight}.original": state[f"{there}.weight_orig"],
        f"{weight}.0._u": state[f"{there}.weight_u"],
        f"{weight}.0._v": state[f"{there}.weight_v"],
    }
    if f"{there}.bias" in state:
        layer[f"{here}.bias"] = state[f"{there}.bias"]
    return layer


def _statistics(state: Mapping[str, Tensor], there: str, truncation: float) -> dict[str, Tensor]:
    """Running statistics for a truncation, as the port takes them from its table."""
    means, variances = state[f"{there}.running_means"], state[f"{there}.running_vars"]
    fraction, row = math.modf(truncation / (1 / (len(means) - 1)))
    rows = [int(row)] if fraction == 0 else [int(row), int(row) + 1]
    # The port gives `fraction` to the lower row, where one would expect it at the upper one.
    share = means.new_tensor([1.0] if fraction == 0 else [fraction, 1 - fraction])
    return {"running_mean": share @ means[rows], "running_var": share @ variances[rows]}


def _channels_first(layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first linear layer, whose outputs the port reads as (4, 4, C), for (C, 4, 4)."""
    return {
        key: value
        if key.endswith("_v")  # belongs to the inputs
        else value.unflatten(0, (16, -1)).transpose(0, 1).flatten(0, 1)
        for key, value in layer.items()
    }


def _three_channels(layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last convolution without the channels that the port makes and drops.

    Its weight is divided by u^T W v, for which all channels count; so u is scaled until the three
    give the same number. It is not a unit vector then; :func:`make_trainable` makes it one.
    """
    weight = "last.parametrizations.weight"
    original, u, v = (layer[f"{weight}.{key}"] for key in ("original", "0._u", "0._v"))
    matrix = original.flatten(1).double()
    sigma = u.double() @ matrix @ v.double()
    left, values, right = torch.linalg.svd(matrix[:3], full_matrices=False)
    return {
        f"{weight}.original": original[:3],
        f"{weight}.0._u": (left[:, 0] * (sigma / values[0])).to(u.dtype),
        f"{weight}.0._v": right[0].to(v.dtype),
        "last.bias": layer["last.bias"][:3],
    }
