"""State dicts, copies and pickles; checkpoints of other norms are refused."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from evonorm import build_norm_act, list_norm_acts
from tests.evonorm.unnamed import UNNAMED

WITH_V = {"EvoNormB0", "EvoNormS0", "EvoNormB/6", "EvoNormS/6"}
WITH_V |= {"BN-PReLU", "BN-Swish", "GN-Swish", "FRN"}
EVONORMS = [n for n in list_norm_acts() if n.startswith(("EvoNorm", "R"))]


@pytest.mark.parametrize("name", list_norm_acts())
def test_keys_shapes_and_first_values(name):
    initial = {"weight": 1.0, "bias": 0.0}
    if name in WITH_V:
        initial["v"] = 0.0 if name in ("BN-PReLU", "FRN") else 1.0
    if name.startswith(("EvoNormB", "RS", "BN")):
        initial["running_var"] = 1.0
    if name.startswith("BN"):
        initial["running_mean"] = 0.0
    state = build_norm_act(name, 8).state_dict()
    assert {k: t.unique().item() for k, t in state.items()} == initial
    assert {t.shape for t in state.values()} == {(8,)}
    affine = set(build_norm_act(name, 8, activation=False).state_dict())
    running = {"running_mean", "running_var"} if name.startswith("BN") else set()
    assert affine == {"weight", "bias"} | running


@pytest.mark.parametrize("name", [*list_norm_acts(), *UNNAMED])
def test_copies(name, random_layer):
    layer = random_layer(name, 8)
    x = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    loaded = build_norm_act(name, 8)
    loaded.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    copies = [loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for other in copies:
        assert torch.equal(other.eval()(x), layer.eval()(x))
        assert other.norm_act == name
    with torch.no_grad():
        layer.weight += 1
    assert not any(torch.equal(other.weight, layer.weight) for other in copies)


def load(norm, layer, strict):
    """Into a model, as a checkpoint is."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), layer)
    model.load_state_dict(nn.Sequential(nn.Conv2d(3, 8, 1), norm).state_dict(), strict=strict)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("name", [*EVONORMS, "FRN", "PixelNorm-ReLU"])
def test_batch_norm_checkpoint_is_refused(name, activation, strict):
    for norm in (nn.BatchNorm2d(8), build_norm_act("BN-ReLU", 8)):
        layer = build_norm_act(name, 8, activation)
        with pytest.raises(ValueError, match="^1: .* another norm's weights") as info:
            load(norm, layer, strict)
        assert name in str(info.value) and "\n" not in str(info.value)
        assert torch.equal(layer.weight, torch.ones(8))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0", "EvoNormB1", "RS+rej", "FRN"])
def test_group_norm_checkpoint_is_refused_where_it_lacks_something(name, strict):
    with pytest.raises(ValueError, match="^1: .* another norm's weights"):
        load(nn.GroupNorm(4, 8), build_norm_act(name, 8), strict)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("trained", ["EvoNormB0", "EvoNormB1", "EvoNormS0", "EvoNormS1"])
@pytest.mark.parametrize("name", ["EvoNormB0", "EvoNormB1", "EvoNormS0", "EvoNormS1"])
def test_checkpoint_of_an_evonorm_with_other_keys_is_refused(name, trained, strict):
    if name == trained:
        load(build_norm_act(trained, 8), build_norm_act(name, 8), strict)
        return
    with pytest.raises(
        ValueError, match=f"^1: .* another norm's weights here, not those of {name}"
    ):
        load(build_norm_act(trained, 8), build_norm_act(name, 8), strict)


def test_torchs_checkpoints_load_into_its_own_norms():
    for norm, name in ((nn.BatchNorm2d(8), "BN-ReLU"), (nn.GroupNorm(4, 8), "GN-ReLU")):
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
        layer = build_norm_act(name, 8)
        load(norm, layer, strict=False)
        assert torch.equal(layer.weight, norm.weight)


@pytest.mark.parametrize("name", [*list_norm_acts(), *UNNAMED])
def test_reset_parameters_gives_a_fresh_layer(name, random_layer):
    """Of a layer that was trained, and of one that was built on "meta" and has no values yet."""
    fresh = build_norm_act(name, 8).state_dict()
    empty = build_norm_act(name, 8, device="meta").to_empty(device="cpu")
    for value in empty.state_dict().values():
        value.fill_(float("nan"))
    for layer in (random_layer(name, 8), empty):
        layer.reset_parameters()
        state = layer.state_dict()
        assert state.keys() == fresh.keys()
        assert all(torch.equal(state[key], fresh[key]) for key in fresh)
