"""Weight decay: none on norm-acts, as the authors decay kernels only, unless asked for."""

import pytest
import torch
from detectron2.solver import build_lr_scheduler
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.solver import get_default_optimizer_params as get_stock_params

from evonorm import list_norm_acts, register_norm_act, registry
from evonorm_d2.solver import (
    build_optimizer,
    get_default_optimizer_params,
    set_norm_act_weight_decay,
)


def decay(optimizer, model):
    """Weight decay by parameter name; each parameter must be in one group."""
    of = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in of
            of[id(parameter)] = group["weight_decay"]
    named = dict(model.named_parameters())
    assert of.keys() == {id(p) for p in named.values() if p.requires_grad}
    return {name: of[id(p)] for name, p in named.items() if p.requires_grad}


def split(model, decays):
    """Decays of norm-acts' parameters by name, those of all others."""
    ours = {id(p) for m in model.modules() if getattr(m, "norm_act", "") for p in m.parameters()}
    named = {name: id(p) in ours for name, p in model.named_parameters()}
    norm = {name: value for name, value in decays.items() if named[name]}
    return norm, {name: value for name, value in decays.items() if not named[name]}


@pytest.mark.parametrize("norm", list_norm_acts())
def test_no_decay_on_any_norm_act_by_default(norm, tiny_cfg, build):
    cfg = tiny_cfg(norm, "SOLVER.WEIGHT_DECAY", 4e-5)
    model = build(cfg)
    norms, others = split(model, decay(build_optimizer(cfg, model), model))
    assert len(norms) >= 2 * (53 + 8 + 1 + 8) and set(norms.values()) == {0}
    assert set(others.values()) == {4e-5}
    has_v = any(name.endswith(".v") for name, _ in model.named_parameters())
    assert any(name.endswith(".v") for name in norms) == has_v


def test_stock_detectron2_would_decay_them(tiny_cfg, build):
    cfg = tiny_cfg("EvoNormS0", "SOLVER.WEIGHT_DECAY", 4e-5)
    model = build(cfg)
    norms, _ = split(model, decay(build_stock_optimizer(cfg, model), model))
    assert set(norms.values()) == {4e-5}


@pytest.mark.parametrize("norm_decay", [0.0, 1e-3, None])
@pytest.mark.parametrize("bias_decay", [None, 0.0, 1e-2])
def test_as_for_stock_batch_norm(norm_decay, bias_decay, tiny_cfg, build):
    """WEIGHT_DECAY_NORM and WEIGHT_DECAY_BIAS mean for BN-ReLU what they do for BN."""
    keys = ("SOLVER.WEIGHT_DECAY", 4e-5, "SOLVER.WEIGHT_DECAY_NORM", norm_decay)
    keys += ("SOLVER.WEIGHT_DECAY_BIAS", bias_decay, "MODEL.RPN.NORM", "")
    cfg = tiny_cfg("BN", *keys)
    model = build(cfg)
    stock = decay(build_stock_optimizer(cfg, model), model)
    cfg = tiny_cfg("BN-ReLU", *keys)
    model = build(cfg)
    assert decay(build_optimizer(cfg, model), model) == stock
    assert 4e-5 in stock.values() and (norm_decay is None or norm_decay in stock.values())


def test_v_is_treated_as_the_weight(tiny_cfg, build):
    keys = ("SOLVER.WEIGHT_DECAY_NORM", 1e-3, "SOLVER.WEIGHT_DECAY_BIAS", 1e-2)
    cfg = tiny_cfg("EvoNormB0", *keys)
    model = build(cfg)
    norms, others = split(model, decay(build_optimizer(cfg, model), model))
    ends = {(name.rpartition(".")[2], value) for name, value in norms.items()}
    assert ends == {("v", 1e-3), ("weight", 1e-3), ("bias", 1e-2)}
    assert {v for name, v in others.items() if name.endswith("weight")} == {1e-4}


def test_bias_learning_rates_stay(tiny_cfg, build):
    cfg = tiny_cfg("EvoNormS0", "SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.BASE_LR", 0.1)
    model = build(cfg)
    rates = {}
    for group in build_optimizer(cfg, model).param_groups:
        rates.update({id(p): group["lr"] for p in group["params"]})
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (0.2 if name.endswith("bias") else 0.1), name


def test_frozen_parameters_stay_out(tiny_cfg, build):
    cfg = tiny_cfg("EvoNormS0", "MODEL.BACKBONE.FREEZE_AT", 2)
    model = build(cfg)
    decays = decay(build_optimizer(cfg, model), model)
    assert not any(".stem." in name or ".res2." in name for name in decays)
    assert any(".res3." in name for name in decays)


def test_a_third_partys_norm_act(tiny_cfg, build):
    class Nested(torch.nn.Module):
        """Whose parameters are in a module of its own that nobody knows."""

        def __init__(self, num_features, activation=True, **options):
            super().__init__()
            self.inner = torch.nn.Conv2d(num_features, num_features, 1, groups=num_features)

        def forward(self, x):
            return self.inner(x)

    register_norm_act("Nested")(Nested)
    try:
        cfg = tiny_cfg("Nested")
        model = build(cfg)
        norms, others = split(model, decay(build_optimizer(cfg, model), model))
    finally:
        del registry._FACTORIES["Nested"]
    assert len(norms) == 2 * (53 + 8 + 1 + 8) and set(norms.values()) == {0}
    assert set(others.values()) == {1e-4}


def test_an_optimizer_of_another_kind(tiny_cfg, build):
    """As LazyConfig's: any optimizer, one group with all parameters."""
    model = build(tiny_cfg("EvoNormS0"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.8, 0.9), weight_decay=0.05)
    set_norm_act_weight_decay(optimizer, model)
    norms, others = split(model, decay(optimizer, model))
    assert set(norms.values()) == {0} and set(others.values()) == {0.05}
    assert all(g["betas"] == (0.8, 0.9) and g["lr"] == 1e-3 for g in optimizer.param_groups)
    before = decay(optimizer, model)
    set_norm_act_weight_decay(optimizer, model)
    assert decay(optimizer, model) == before and len(optimizer.param_groups) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"weight_decay_norm": 0.0},
        {"weight_decay_norm": 1e-3, "weight_decay": 1e-2},
        {"weight_decay_norm": 0.0, "weight_decay_bias": 1e-2, "base_lr": 0.1, "bias_lr_factor": 2},
        {"weight_decay_norm": 0.0, "overrides": {"weight": {"weight_decay": 1e-5}}},
        {"weight_decay": 1e-2},
    ],
)
def test_lazy_configs_parameters_as_for_stock_batch_norm(arguments, tiny_cfg, build):
    found = []
    for norm, function in (("BN", get_stock_params), ("BN-ReLU", get_default_optimizer_params)):
        model = build(tiny_cfg(norm, "MODEL.RPN.NORM", ""))
        optimizer = torch.optim.SGD(function(model, **arguments), lr=1e-3, weight_decay=0.5)
        rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        rates = {name: rates[id(p)] for name, p in model.named_parameters()}
        found.append((decay(optimizer, model), rates))
    assert found[0] == found[1]


@pytest.mark.parametrize("clip_type", ["value", "norm"])
def test_training_with_schedule_and_clipping(clip_type, tiny_cfg, build, batch, train_step):
    cfg = tiny_cfg(
        "EvoNormS0",
        *("SOLVER.BASE_LR", 0.1, "SOLVER.MAX_ITER", 10, "SOLVER.STEPS", (2,)),
        *("SOLVER.WARMUP_ITERS", 0, "SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.MOMENTUM", 0.0),
        *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1e-3),
    )
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    model = build(cfg)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    train_step(model, batch())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()

    def clipped(grad):
        if clip_type == "value":
            return grad.clamp(-1e-3, 1e-3)
        return grad * min(1, 1e-3 / (float(grad.norm()) + 1e-6))

    norms, _ = split(model, decay(optimizer, model))
    for name, parameter in model.named_parameters():
        update = clipped(grads[name]) + (0 if name in norms else 0.5) * before[name]
        after = before[name] - 0.1 * update
        torch.testing.assert_close(parameter.detach(), after, atol=1e-6, rtol=1e-5)
    for _ in range(3):
        scheduler.step()
    assert {round(group["lr"], 6) for group in optimizer.param_groups} == {0.01}
    restored = build_optimizer(cfg, model)
    restored.load_state_dict(optimizer.state_dict())
    assert decay(restored, model) == decay(optimizer, model)
