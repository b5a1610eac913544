"""Weight standardisation against its formula in float64, and in a detector."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from detectron2.engine import default_setup
from detectron2.layers import Conv2d
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from evonorm_d2 import average
from evonorm_d2 import train as training
from evonorm_d2.config import _unread
from evonorm_d2.data import register_digits
from evonorm_d2.run_config import load_config
from evonorm_d2.weight_standardization import (
    EPS,
    StandardizedConv2d,
    standardize,
    standardize_weights,
)

KEY = ("MODEL.META_ARCHITECTURE", "WeightStandardizedRCNN")


def formula(weight):
    """Equation 6 of the paper: over all inputs of an output, mean of squares minus squared mean."""
    flat = weight.reshape(len(weight), -1)
    mean = flat.mean(1, keepdims=True)
    sigma = np.sqrt((flat**2).mean(1, keepdims=True) - mean**2 + EPS)
    return ((flat - mean) / sigma).reshape(weight.shape)


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (5, 6, 1, 1), (4, 1, 3, 3)])
def test_the_formula(shape):
    weight = 0.1 * torch.randn(shape, dtype=torch.float64) + 0.3
    torch.testing.assert_close(standardize(weight), torch.from_numpy(formula(weight.numpy())))
    single = standardize(weight.float()).double()
    torch.testing.assert_close(single, standardize(weight), rtol=1e-4, atol=1e-5)
    # Other projects standardise by a batch norm whose channels are the outputs.
    outputs = weight.reshape(1, len(weight), -1)
    other = F.batch_norm(outputs, None, None, training=True, eps=EPS).reshape(shape)
    torch.testing.assert_close(standardize(weight), other)


def test_gradients():
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardize, weight)
    assert torch.autograd.gradgradcheck(standardize, weight)


@pytest.mark.parametrize("activation", [None, F.relu])
def test_a_convolution(activation):
    torch.manual_seed(0)
    arguments = {"stride": 2, "padding": 1, "groups": 2, "bias": True}
    norm = nn.GroupNorm(2, 8)
    conv = Conv2d(4, 8, 3, norm=norm, activation=activation, **arguments).double()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    before, parameter = conv(x), conv.weight.detach().clone()
    model = standardize_weights(nn.Sequential(conv))
    kernel = torch.from_numpy(formula(parameter.numpy()))
    expected = norm(F.conv2d(x, kernel, conv.bias, stride=2, padding=1, groups=2))
    expected = expected if activation is None else activation(expected)
    torch.testing.assert_close(model(x), expected)
    assert not torch.allclose(model(x), before, atol=1e-2)
    assert torch.equal(conv.weight, parameter)


@pytest.fixture
def config(tiny_run, tmp_path, digits_root):
    register_digits(digits_root)

    def make(*overrides, norm="EvoNormS0"):
        file, values = tiny_run(norm, "OUTPUT_DIR", tmp_path / "run", *KEY, *overrides)
        return load_config(file, values)

    return make


@pytest.mark.parametrize("norm", ["BN", "EvoNormS0"])
def test_a_detector_has_it_where_a_norm_follows(config, norm):
    model = build_model(config(norm=norm))
    convs = {name: m for name, m in model.named_modules() if isinstance(m, Conv2d)}
    with_norm = {name for name, conv in convs.items() if conv.norm is not None}
    found = {name for name, conv in convs.items() if isinstance(conv, StandardizedConv2d)}
    assert found == with_norm
    parts = ("backbone.bottom_up", "backbone.fpn", "proposal_generator", "roi_heads.box_head")
    assert all(any(n.startswith(part) for n in found) for part in (*parts, "roi_heads.mask_head"))
    assert "roi_heads.mask_head.predictor" in set(convs) - found
    usual = build_model(config("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", norm=norm))
    shapes = [{key: x.shape for key, x in m.state_dict().items()} for m in (model, usual)]
    assert shapes[0] == shapes[1]


def test_a_resumed_run_equals_an_uninterrupted_one(config, tmp_path, equal):
    states = []
    for folder in ("whole", "resumed"):
        (tmp_path / folder).mkdir()
        if states:  # as if the first run had been killed after two steps
            shutil.copy(tmp_path / "whole" / "model_0000001.pth", tmp_path / folder)
            (tmp_path / folder / "last_checkpoint").write_text("model_0000001.pth")
        settings = ("SOLVER.MAX_ITER", 4, "SOLVER.EMA_DECAY", 0.75, "SEED", 1)
        cfg = config(*settings, "OUTPUT_DIR", tmp_path / folder)
        default_setup(cfg, None)
        training.train(cfg, resume=True)
        states.append(torch.load(tmp_path / folder / "model_final.pth", weights_only=True))
    assert equal(states[0]["model"], states[1]["model"])
    assert equal(states[0][average.KEY], states[1][average.KEY])


def test_its_detector_reads_the_keys_that_the_stock_one_reads(stock_cfg):
    for key in ("RETINANET.NORM", "SEM_SEG_HEAD.NORM", "RPN.NORM", "ROI_MASK_HEAD.NORM"):
        stock, ours = (
            stock_cfg("Base-RCNN-FPN.yaml", "MODEL.META_ARCHITECTURE", name)
            for name in ("GeneralizedRCNN", KEY[1])
        )
        assert _unread(ours, key) == _unread(stock, key)
    assert _unread(ours, "RETINANET.NORM") == "META_ARCHITECTURE"
