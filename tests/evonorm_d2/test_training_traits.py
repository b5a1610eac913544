"""What Detectron2 does around a norm: freezing, empty batches, mixed precision, conversions."""

import copy

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from evonorm import build_norm_act, list_norm_acts

BATCH_DEPENDENT = [n for n in list_norm_acts() if build_norm_act(n, 1).batch_dependent]


def norm_acts(module):
    return [m for m in module.modules() if getattr(m, "norm_act", "")]


def buffers(module):
    return {name: b.clone() for name, b in module.named_buffers() if "running" in name}


# FREEZE_AT


@pytest.mark.parametrize("norm", ["EvoNormS0", *BATCH_DEPENDENT])
def test_a_frozen_stage_does_not_learn_and_evaluates(norm, tiny_cfg, build, batch, train_step):
    model = build(tiny_cfg(norm, "MODEL.BACKBONE.FREEZE_AT", 2))
    network = model.backbone.bottom_up
    frozen = norm_acts(network.stem) + norm_acts(network.res2)
    assert len(frozen) == 1 + 3 * 3 + 1
    before = buffers(model)
    for _ in range(2):
        train_step(model.eval(), batch())  # which calls model.train()
    assert not any(layer.training for layer in frozen)
    assert not any(p.requires_grad or p.grad is not None for m in frozen for p in m.parameters())
    moved = {name for name, b in buffers(model).items() if not torch.equal(b, before[name])}
    still = before.keys() - moved
    assert all(".stem." in name or ".res2." in name for name in still)
    assert not any(".stem." in name or ".res2." in name for name in moved)
    assert bool(moved) == (norm in BATCH_DEPENDENT)
    assert all(m.training and m.weight.requires_grad for m in norm_acts(network.res3))


@pytest.mark.parametrize(
    "freeze_at, stages", [(0, []), (1, ["stem"]), (3, ["stem", "res2", "res3"])]
)
def test_freeze_at_counts_as_in_detectron2(freeze_at, stages, tiny_cfg, build):
    network = build(tiny_cfg("EvoNormB0", "MODEL.BACKBONE.FREEZE_AT", freeze_at)).backbone.bottom_up
    frozen = {name for name, part in network.named_children() if norm_acts(part)[0].frozen}
    assert frozen == set(stages)


def test_a_frozen_stage_gives_in_training_what_it_gives_in_evaluation(tiny_cfg, build):
    network = build(tiny_cfg("EvoNormB0", "MODEL.BACKBONE.FREEZE_AT", 5)).backbone.bottom_up
    x = torch.randn(2, 3, 64, 64)
    for name, y in network.train()(x).items():
        assert torch.equal(y, network.eval()(x)[name])


def test_a_copy_of_a_frozen_stage_is_frozen(tiny_cfg, build):
    model = copy.deepcopy(build(tiny_cfg("EvoNormB0", "MODEL.BACKBONE.FREEZE_AT", 2))).train()
    assert not any(layer.training for layer in norm_acts(model.backbone.bottom_up.res2))


# Images without objects, and none at all that is proposed


@pytest.mark.parametrize("proposals", [8, 0])
@pytest.mark.parametrize("norm", list_norm_acts())
def test_no_rois(norm, proposals, tiny_cfg, build, batch, train_step):
    topk = ("MODEL.RPN.POST_NMS_TOPK_TRAIN", proposals, "MODEL.RPN.POST_NMS_TOPK_TEST", proposals)
    model = build(tiny_cfg(norm, *topk))
    before = buffers(model.roi_heads)
    losses = train_step(model, batch(objects=False))
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, parameter in model.named_parameters():  # else distributed training would hang
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    for name, value in buffers(model.roi_heads).items():
        seen = proposals > 0 and "box_head" in name
        assert torch.equal(value, before[name]) != seen, name
    with torch.no_grad():
        for output in model.eval()(batch(objects=False)):
            assert len(output["instances"]) == (0 if proposals == 0 else 4)


# Mixed precision


def dtypes(model, images):
    """The output's dtype by the norm's name, under bfloat16 autocast."""
    found = {}
    for name, module in model.named_modules():
        if getattr(module, "norm_act", "") or isinstance(module, nn.GroupNorm):
            module.register_forward_hook(lambda m, x, y, name=name: found.update({name: y.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(images)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    return found


@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0", "BN-ReLU", "GN-ReLU", "FRN", "RS+rej"])
def test_under_autocast_outputs_have_group_norms_dtype(norm, tiny_cfg, build, batch):
    one = ("MODEL.RPN.NORM", "")  # whose layers have other names where statistics are per level
    stock = dtypes(build(tiny_cfg("GN", *one, width=32)), batch())
    assert set(stock.values()) == {torch.bfloat16} and len(stock) == 53 + 8 + 8
    assert dtypes(build(tiny_cfg(norm, *one)), batch()) == stock


# Conversions


@pytest.mark.parametrize("norm", list_norm_acts())
@pytest.mark.parametrize(
    "convert",
    [FrozenBatchNorm2d.convert_frozen_batchnorm, nn.SyncBatchNorm.convert_sync_batchnorm],
)
def test_conversions_of_batch_norm_leave_norm_acts_alone(norm, convert, tiny_cfg, build):
    with torch.device("meta"):
        model = build(tiny_cfg(norm, "MODEL.DEVICE", "meta"))
    before = [id(m) for m in model.modules()]
    assert [id(m) for m in convert(model).modules()] == before
