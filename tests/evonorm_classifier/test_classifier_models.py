"""The classifiers: their architecture against other implementations, their norms after convert."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from evonorm import list_norm_acts
from evonorm_classifier.config import MODELS, load_config
from evonorm_classifier.models import MODELS as BUILDERS
from evonorm_classifier.models import build_model
from evonorm_runs.errors import UserError

CONFIG = str(Path(__file__).parents[2] / "configs" / "classification" / "digits.yaml")


def build(*overrides):
    return build_model(load_config(CONFIG, ["DEVICE", "cpu", *map(str, overrides)]), 10)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def sites(model):
    return [m for m in model.modules() if hasattr(m, "norm_act")]


class TestArchitecture:
    @pytest.mark.parametrize("depth", [50, 101])
    def test_resnets_have_the_parameters_of_timms(self, depth):
        with torch.device("meta"):
            ours = BUILDERS[f"preact_resnet{depth}"](1000)
            assert parameters(ours) == parameters(timm.create_model(f"resnetv2_{depth}"))

    def test_resnet50_computes_what_timms_does(self):
        theirs = timm.create_model("resnetv2_50", num_classes=7)
        ours = BUILDERS["preact_resnet50"](7)
        state = theirs.state_dict()
        blocks = [key.rsplit(".", 2)[0] for key in state if key.endswith(".norm1.weight")]
        renamed = {}
        for key, value in state.items():
            for i, block in enumerate(blocks):
                key = key.replace(f"{block}.", f"blocks.{i}.")
            key = key.replace("downsample.conv", "shortcut").replace("head.fc", "fc")
            key = key.replace("stem.conv", "stem.0")
            renamed[key] = value.flatten(1) if key == "fc.weight" else value
        ours.load_state_dict(renamed)
        x = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))

    def test_mobilenet_on_large_images_is_torchvisions(self):
        from torchvision.models import mobilenet_v2

        ours, theirs = BUILDERS["mobilenet_v2"](1000, 1.0, 224), mobilenet_v2()
        assert parameters(ours) == 3_504_872  # torchvision's documentation
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(1, 3, 96, 96)
        assert torch.equal(ours.eval()(x), theirs.eval()(x))

    def test_efficientnet_on_large_images_is_torchvisions(self):
        from torchvision.models import efficientnet_b0

        ours, theirs = BUILDERS["efficientnet_b0"](1000, 1.0, 224), efficientnet_b0()
        assert parameters(ours) == 5_288_548  # torchvision's documentation
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(1, 3, 96, 96)
        assert torch.equal(ours.eval()(x), theirs.eval()(x))

    @pytest.mark.parametrize(
        "name, parameters_with_bn, with_activation, without, v",
        [  # sites and parameters counted by hand from the papers' tables, parameters equal timm's
            ("preact_resnet101", 44_541_480, 100, 0, 48_832),
            ("mobilenet_v2", 3_504_872, 35, 17, 15_552),
            ("mnasnet_b1", 4_383_312, 35, 17, 17_232),
            ("efficientnet_b0", 5_288_548, 33, 16, 19_200),
            ("efficientnet_b5", 30_389_784, 77, 39, 79_376),
        ],
    )
    def test_parameters_and_sites_of_table_2(
        self, name, parameters_with_bn, with_activation, without, v
    ):
        cfg = load_config(CONFIG, ["DEVICE", "cpu", "MODEL.NAME", name, "MODEL.NORM", "EvoNormB0"])
        with torch.device("meta"):
            ours = build_model(cfg, 1000)
        found = [s.activation for s in sites(ours)]
        assert (found.count(True), found.count(False)) == (with_activation, without)
        assert sum(s.v.numel() for s in sites(ours) if s.activation) == v
        assert parameters(ours) == parameters_with_bn + v

    @pytest.mark.parametrize("name", ["mnasnet_b1", "efficientnet_b5"])
    def test_large_images_see_torchvisions_weights_and_strides(self, name):
        import torchvision.models as theirs

        build_theirs = {"mnasnet_b1": theirs.mnasnet1_0}.get(name, theirs.efficientnet_b5)
        torch.manual_seed(0)
        ours = BUILDERS[name](10)
        torch.manual_seed(0)
        expected = build_theirs(num_classes=10)
        assert str(ours.classifier) == str(expected.classifier)  # dropout
        drops = [[m.p for m in x.modules() if type(m) is StochasticDepth] for x in (ours, expected)]
        assert drops[0] == drops[1]
        x = torch.randn(1, 3, 64, 64)
        # Their BatchNorm's eps is not ours before convert has built it, so set it alike.
        for m in expected.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eps = 1e-5
        assert torch.equal(ours.eval()(x), expected.eval()(x))

    @pytest.mark.parametrize(
        "name, size",
        [("preact_resnet8", 4), ("mobilenet_v2", 2), ("mnasnet_b1", 2), ("efficientnet_b0", 2)],
    )
    def test_maps_of_small_images_do_not_shrink_to_a_point(self, name, size):
        model = build("MODEL.NAME", name)
        seen = []
        for site in sites(model):
            site.register_forward_hook(lambda module, args, y: seen.append(y.shape[-1]))
        model(torch.randn(2, 3, 32, 32))
        assert seen[0] == 16 and seen[-1] == min(seen) == size

    def test_width_multiplies_channels(self):
        one, half = (build("MODEL.WIDTH", width) for width in (1.0, 0.5))
        assert [s.num_features for s in sites(one)] == [2 * s.num_features for s in sites(half)]


class TestNorms:
    @pytest.mark.parametrize("name", [name for name in MODELS if name != "efficientnet_b5"])
    @pytest.mark.parametrize("norm", ["BN-ReLU", "EvoNormS0"])
    def test_no_norm_and_no_activation_is_left(self, name, norm):
        with torch.device("meta"):
            model = build("MODEL.NAME", name, "MODEL.NORM", norm)
        stock = (nn.BatchNorm2d, nn.GroupNorm, nn.ReLU, nn.ReLU6)
        assert not [m for m in model.modules() if isinstance(m, stock)]
        assert {site.norm_act for site in sites(model)} == {norm}
        # A norm per convolution, but for projections; MobileNetV2's 17 blocks end without ReLU,
        # and so do EfficientNet's 16.
        norms, linear = {
            "preact_resnet8": (2 * 3 + 1, 0),
            "preact_resnet50": (3 * 16 + 1, 0),
            "preact_resnet101": (3 * 33 + 1, 0),
            "mobilenet_v2": (52, 17),
            "mnasnet_b1": (52, 17),
            "efficientnet_b0": (49, 16),
            "resnet18": (20, 11),
            "resnet34": (36, 19),
            "resnet50": (53, 20),
            "resnet101": (104, 37),
        }[name]
        assert len(sites(model)) == norms
        assert [site.activation for site in sites(model)].count(False) == linear

    @pytest.mark.parametrize("norm", list_norm_acts())
    def test_gives_finite_scores_and_gradients(self, norm):
        torch.manual_seed(0)
        model = build("MODEL.NORM", norm)
        scores = model(torch.randn(4, 3, 32, 32))
        scores.square().sum().backward()
        assert scores.shape == (4, 10) and torch.isfinite(scores).all()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())

    @pytest.mark.parametrize("groups, expected", [(8, {8}), (0, {16, 32})])
    def test_groups(self, groups, expected):
        model = build("MODEL.NORM", "EvoNormS0", "MODEL.NUM_GROUPS", groups)
        assert {site.num_groups for site in sites(model)} == expected  # 16 channels, 16 groups

    def test_negative_groups_are_refused(self):
        with pytest.raises(UserError, match="MODEL.NUM_GROUPS is -1, but should not be negative"):
            build("MODEL.NORM", "EvoNormS0", "MODEL.NUM_GROUPS", -1)


class TestOptions:
    def test_eps_and_momentum_are_of_bn_or_of_all_others(self):
        overrides = "MODEL.BN.EPS 1e-3 MODEL.BN.MOMENTUM 0.01 MODEL.EVONORM.EPS 1e-4".split()
        for norm, eps, momentum in (("BN-ReLU", 1e-3, 0.01), ("EvoNormB0", 1e-4, 0.1)):
            found = sites(build("MODEL.NORM", norm, *overrides))
            assert {(s.eps, s.momentum) for s in found if hasattr(s, "eps")} == {(eps, momentum)}

    def test_groups_of_a_size(self):
        model = build(
            "MODEL.NORM", "EvoNormS0", "MODEL.EVONORM.GROUP_SIZE", 8, "MODEL.NUM_GROUPS", 0
        )
        assert {s.num_features // s.num_groups for s in sites(model)} == {8}

    def test_dropout_and_drop_connect(self):
        overrides = "MODEL.NAME", "efficientnet_b0", "MODEL.DROPOUT", 0.3, "MODEL.DROP_CONNECT", 0.4
        model = build(*overrides)
        assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3]
        drops = [m.p for m in model.modules() if isinstance(m, StochasticDepth)]
        # 16 blocks; tensorflow/tpu's rate of the i-th block is 0.4 * i / 16.
        assert drops == pytest.approx([0.4 * i / 16 for i in range(16)])

    @pytest.mark.parametrize("name", ["mobilenet_v2", "mnasnet_b1", "efficientnet_b0"])
    def test_initial_weights_of_depthwise_convolutions(self, name):
        """By each library's rule for the fan-out, a kernel's area times its outputs."""
        for init, outputs in (
            ("torchvision", lambda m: m.out_channels),
            ("tensorflow", lambda m: 1),
        ):
            torch.manual_seed(0)
            model = build("MODEL.NAME", name, "MODEL.DEPTHWISE_INIT", init)
            layers = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
            for m in layers:
                assert m.groups == m.in_channels == m.out_channels
            drawn = [
                m.weight.detach() * (m.kernel_size[0] ** 2 * outputs(m) / 2) ** 0.5 for m in layers
            ]
            values = torch.cat([x.flatten() for x in drawn])
            assert values.std() == pytest.approx(1, abs=0.01) and len(layers) >= 16

    @pytest.mark.parametrize(
        "overrides, expected",
        [
            (
                ("MODEL.DEPTHWISE_INIT", "tensorflow"),
                "MODEL.DEPTHWISE_INIT is tensorflow, but preact_resnet8 has no depthwise",
            ),
            (("MODEL.DEPTHWISE_INIT", "timm"), "MODEL.DEPTHWISE_INIT is 'timm'; known are torch"),
            (("MODEL.DROPOUT", 0.2), "MODEL.DROPOUT is 0.2, but preact_resnet8 has no place for"),
            (
                ("MODEL.NAME", "mobilenet_v2", "MODEL.DROP_CONNECT", 0.2),
                "MODEL.DROP_CONNECT is 0.2, but mobilenet_v2 has no place for it",
            ),
            (("MODEL.DROPOUT", "much"), "MODEL.DROPOUT is 'much', but should be a number or None"),
            (("MODEL.BN.EPS", -1.0), "MODEL.BN.EPS is -1.0, but should be more than 0"),
            (
                ("MODEL.EVONORM.GROUP_SIZE", 4),  # beside the config's NUM_GROUPS
                "MODEL.NUM_GROUPS and MODEL.EVONORM.GROUP_SIZE are set: set one of them",
            ),
        ],
    )
    def test_impossible_options(self, overrides, expected):
        with pytest.raises(UserError, match=f"^{expected}"):
            build(*overrides)

    def test_recomputed_outputs_give_the_same_gradients(self):
        x, found = torch.randn(2, 3, 32, 32), []
        for again in (False, True):
            torch.manual_seed(0)
            model = build("MODEL.NORM", "EvoNormS0", "MODEL.RECOMPUTE", again)
            model(x).square().sum().backward()
            found.append([p.grad for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*found))
        assert len(model._forward_pre_hooks) == 1  # of evonorm.recompute
