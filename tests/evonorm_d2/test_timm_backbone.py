"""timm's models as backbones: their features, names, freezing, weights, and a detector on them."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import nn

from evonorm import check
from evonorm_d2 import resolve, resolve_lazy
from evonorm_d2.data import register_digits
from evonorm_d2.norm import Norm, norm_acts
from evonorm_d2.run_config import load_config
from evonorm_d2.timm_backbone import TimmBackbone, pixels_of
from evonorm_d2.trainer import Trainer
from evonorm_runs.errors import UserError

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LIGHT = "test_efficientnet_evos"


def backbone(name=LIGHT, seed=0, **options):
    torch.manual_seed(seed)
    return TimmBackbone(name, pretrained=False, **options)


@pytest.mark.parametrize("name", ["resnet18", LIGHT, "mobilenetv2_050", "convnext_atto"])
def test_features_are_timms_by_the_names_of_a_resnets(name):
    model = backbone(name).eval()
    theirs = timm.create_model(name, features_only=True).eval()
    theirs.load_state_dict(model.body.state_dict())
    with torch.no_grad():
        ours, wanted = model(X), theirs(X)
    assert list(ours) == ["res2", "res3", "res4", "res5"]
    for (key, y), expected in zip(ours.items(), wanted[-4:]):
        shape = model.output_shape()[key]
        assert y.shape[1:] == (shape.channels, 64 // shape.stride, 64 // shape.stride)
        assert shape.stride == {"res2": 4, "res3": 8, "res4": 16, "res5": 32}[key]
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert not any(type(m).__module__ == "timm.layers.evo_norm" for m in model.modules())


def test_chosen_features():
    model = backbone("resnet18", out_indices=(0, 3))
    assert {k: v.stride for k, v in model.output_shape().items()} == {"stem": 2, "res4": 16}
    assert list(model(X)) == ["stem", "res4"]


def test_channels_last_features_become_channels_first():
    model = backbone("swin_tiny_patch4_window7_224", out_indices=(0,))
    assert model(torch.zeros(1, 3, 224, 224))["res2"].shape == (1, 96, 56, 56)


@pytest.mark.parametrize(
    ("name", "norm"), [("resnetv2_50d_evos", "EvoNormS0"), ("resnetv2_18", "BN-ReLU")]
)
def test_sums_of_a_pre_activation_model_get_a_norm_act_each(name, norm):
    model = backbone(name).eval()
    assert [layer.norm_act for layer in model.level_norms] == 4 * [norm]
    with torch.no_grad():
        sums = [y for i, y in enumerate(model.body(X)) if i in model._indices]
        for layer, y, out in zip(model.level_norms, sums, model(X).values()):
            torch.testing.assert_close(layer(y), out)
    assert not backbone("resnet18").level_norms


def test_norms_are_swapped_for_the_one_that_is_named(caplog):
    with caplog.at_level(logging.INFO):
        model = backbone("mobilenetv2_050", norm=Norm("EvoNormS0", num_groups=4))
    layers = norm_acts(model)
    assert len(layers) == 51 and all(layer.num_groups <= 4 for layer in layers)
    assert all(layer.refuse_unknown for layer in layers)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert "mobilenetv2_050: 51 norms are EvoNormS0 now, with new weights" in caplog.messages
    assert check(model, X) == []


@pytest.mark.parametrize(
    ("freeze_at", "below"),
    [(0, ()), (1, ("conv1", "bn1")), (2, ("conv1", "bn1", "layer1"))],
)
def test_freezes_what_the_lower_features_depend_on(freeze_at, below):
    model = backbone("resnet18", freeze_at=freeze_at).train()
    for name, parameter in model.body.named_parameters():
        assert parameter.requires_grad == (not name.startswith(below) or not below), name
    stays = {k: v.clone() for k, v in model.state_dict().items() if k[5:].startswith(below)}
    frozen = [n for n, m in model.body.named_modules() if type(m).__name__ == "FrozenBatchNorm2d"]
    assert len(frozen) == {0: 0, 1: 1, 2: 5}[freeze_at]
    sum(y.sum() for y in model(X).values()).backward()
    for key, value in stays.items() if below else ():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)


def test_freezes_norm_acts_in_a_model_of_mixed_blocks():
    model = backbone(LIGHT, freeze_at=2).train()
    frozen = [p for p in norm_acts(model) if p.frozen]
    assert 0 < len(frozen) < len(norm_acts(model))
    assert not any(p.requires_grad for layer in frozen for p in layer.parameters())


def test_no_parameter_is_without_a_gradient():
    """DistributedDataParallel would wait for it."""
    for name in ("dla34", "resnetv2_18"):
        model = backbone(name)
        sum(y.sum() for y in model(X).values()).backward()
        trained = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert trained == []


def test_weights_from_a_file_without_a_network(tmp_path):
    torch.manual_seed(7)
    source = timm.create_model(LIGHT)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = TimmBackbone(LIGHT, file=str(tmp_path / "weights.pth"))
    loaded = model.body.state_dict()
    assert loaded["conv_stem.weight"].equal(source.conv_stem.weight)
    assert loaded["bn1.v"].equal(source.bn1.v)
    assert not backbone(seed=8).body.state_dict()["conv_stem.weight"].equal(source.conv_stem.weight)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet5", {}, r"MODEL.TIMM.NAME resnet5 \(.*\): Unknown model"),
        ("vit_tiny_patch16_224", {}, "strides 16, 16, 16.*OUT_INDICES"),
        (LIGHT, {"file": "absent.pth"}, "^MODEL.TIMM.FILE absent.pth: there is no such file$"),
        ("resnet18", {"out_indices": (9,)}, "MODEL.TIMM.NAME resnet18 .*OUT_INDICES"),
        ("levit_128s", {"norm": "EvoNormS0"}, "MODEL.TIMM.NORM for levit_128s: "),
    ],
)
def test_what_is_impossible_gets_one_line(name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        TimmBackbone(name, **{"pretrained": False, **options})
    assert "\n" not in str(caught.value)


def timm_cfg(tiny_cfg, *overrides, norm="EvoNormS0"):
    where = ("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", LIGHT)
    return tiny_cfg(norm, *where, "MODEL.TIMM.PRETRAINED", False, *overrides)


def test_pixels_are_the_models_own(tiny_cfg, caplog):
    cfg = timm_cfg(tiny_cfg)
    with caplog.at_level(logging.INFO):
        resolve(cfg)
    assert cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_STD == 3 * [127.5]
    assert cfg.INPUT.FORMAT == "RGB"
    said = f"{LIGHT} sets MODEL.PIXEL_MEAN [127.5, 127.5, 127.5], MODEL.PIXEL_STD [127.5, "
    assert any(message.startswith(said) for message in caplog.messages)
    caplog.clear()
    assert resolve(cfg) is cfg and not any("sets" in message for message in caplog.messages)
    imagenet = pixels_of("resnet50")
    assert imagenet["pixel_mean"] == pytest.approx([123.675, 116.28, 103.53])


@pytest.mark.parametrize("norm", ["", "EvoNormB0"])
def test_a_detector_trains(norm, tiny_cfg, build, batch, train_step):
    model = build(timm_cfg(tiny_cfg, "MODEL.TIMM.NORM", norm, "MODEL.BACKBONE.FREEZE_AT", 1))
    losses = train_step(model, batch())
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert check(model, batch()) == []
    kinds = {layer.norm_act for layer in norm_acts(model.backbone.bottom_up)}
    assert kinds == {norm or "EvoNormS0"}


def test_retinanet_on_it(tiny_cfg, build, batch, train_step):
    where = {
        "path": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
        "keys": ("FPN.NORM", "RETINANET.NORM"),
    }
    overrides = ("MODEL.BACKBONE.NAME", "build_timm_retinanet_fpn_backbone")
    name = ("MODEL.TIMM.NAME", "mobilenetv2_050", "MODEL.TIMM.PRETRAINED", False)
    model = build(tiny_cfg("EvoNormS0", *overrides, *name, "MODEL.TIMM.NORM", "EvoNormS0", **where))
    assert all(loss.isfinite() for loss in train_step(model, batch()).values())
    assert check(model, batch()) == []


def test_an_empty_name_gets_one_line(tiny_cfg, build):
    with pytest.raises(UserError, match="^MODEL.TIMM.NAME is empty: name a model of timm"):
        build(timm_cfg(tiny_cfg, "MODEL.TIMM.NAME", ""))


def test_in_a_lazy_config():
    model = L(FPN)(
        bottom_up=L(TimmBackbone)(name="mobilenetv2_050", pretrained=False, norm="EvoNormS0"),
        in_features=["res2", "res3", "res4", "res5"],
        out_channels=16,
        norm="EvoNormS0",
        top_block=L(LastLevelMaxPool)(),
    )
    built = instantiate(resolve_lazy(model, num_groups=8))
    assert len(norm_acts(built)) == 51 + 8
    assert {layer.num_groups <= 8 for layer in norm_acts(built)} == {True}
    assert check(built, X) == []


def test_trains_on_the_embedded_scenes(tiny_run, digits_root, tmp_path):
    """MobileNetV2 with S0 under Mask R-CNN, from load_config to a run that goes on."""
    register_digits(digits_root)
    overrides = ("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME")
    overrides += ("mobilenetv2_050", "MODEL.TIMM.NORM", "EvoNormS0", "MODEL.TIMM.PRETRAINED", False)
    overrides += ("SOLVER.MAX_ITER", 4, "OUTPUT_DIR", tmp_path / "run", "DATASETS.TEST", "()")
    file, values = tiny_run("EvoNormS0", *overrides)
    cfg = load_config(file, values)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    saved = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    assert "backbone.bottom_up.body.bn1.v" in saved
    again = Trainer(cfg)
    again.resume_or_load(resume=True)
    assert again.start_iter == 4
    torch.testing.assert_close(dict(again.model.state_dict()), dict(saved), rtol=0, atol=0)
