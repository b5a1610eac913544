"""tools/export_backbone.py: classifiers and public ResNets, in detectors by MODEL.WEIGHTS."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone import build_resnet_backbone

from evonorm_classifier.config import load_config as classifier_config
from evonorm_classifier.models import build_model as build_classifier
from evonorm_classifier.trainer import train as train_classifier
from evonorm_d2.backbone_file import check_backbone, write_backbone
from evonorm_d2.checkpoint import Checkpointer
from evonorm_d2.data import register_digits
from evonorm_d2.run_config import load_config
from evonorm_d2.train import train
from evonorm_runs.errors import UserError

ROOT = Path(__file__).parents[2]
CLASSIFIER = str(ROOT / "configs/classification/garments_resnet50_detectron2.yaml")
STOCK = str(ROOT / "configs/detection/stock/mask_rcnn_R_50_FPN_1x_EvoNormS0.yaml")
ZOO = ("INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]")
ZOO += ("MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]")


def of_classifier(*overrides):
    pairs = {"DEVICE": "cpu", "MODEL.WIDTH": 0.125, "MODEL.NORM": "EvoNormS0"}
    values = [str(x) for pair in pairs.items() for x in pair]
    return classifier_config(CLASSIFIER, [*values, *map(str, overrides)])


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def checkpoint(tmp_path):
    """checkpoint(*KEY VALUE): a run's folder, untrained, its weights drawn; and its model."""

    def make(*overrides):
        cfg = of_classifier(*overrides)
        model = build_classifier(cfg, 10).eval()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.dim() == 1 and value.is_floating_point():
                    value.copy_(torch.rand_like(value) + 0.5 * ("running_mean" not in name))
        folder = tmp_path / "classifier"
        folder.mkdir()
        data = {"epoch": 1, "config": cfg.dump(), "data": {"images": 8000, "classes": 10}}
        state = {**data, "optimizer": {}, "model": model.state_dict()}
        torch.save(state, folder / "checkpoint.pth")
        (folder / "metrics.json").write_text(json.dumps({"epoch": 1, "accuracy": 71.25}) + "\n")
        return folder, model

    return make


def narrow(norm, *overrides):
    """The config of a detector with the classifier's backbone."""
    pairs = {
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": "[127.5, 127.5, 127.5]",
        "MODEL.PIXEL_STD": "[127.5, 127.5, 127.5]",
        **{f"MODEL.{part}.NORM": norm for part in ("RESNETS", "FPN", "RPN")},
        **{f"MODEL.ROI_{part}_HEAD.NORM": norm for part in ("BOX", "MASK")},
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    }
    values = [str(x) for pair in pairs.items() for x in pair]
    return load_config(STOCK, ["MODEL.EVONORM.LINEAR", "", *values, *map(str, overrides)])


def load(path, cfg, build=build_backbone):
    """The ResNet of a config with the weights of a file."""
    model = build(cfg).eval()
    Checkpointer(model, cfg=cfg).load(str(path))
    return getattr(model, "backbone", model).bottom_up


def refusal(path, cfg):
    with pytest.raises(UserError) as error:
        load(path, cfg)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


EVERY = ["EvoNormS0", "EvoNormS1", "EvoNormB0", "BN-ReLU", "GN-ReLU", "x * tanh(x) / std_g(x)"]


@pytest.mark.parametrize("norm", EVERY)
def test_a_detector_has_each_weight_of_the_classifier(norm, checkpoint, tmp_path, call):
    folder, classifier = checkpoint("MODEL.NORM", norm)
    out = tmp_path / "backbone.pkl"
    status, printed, err = call(folder, "-o", out)
    assert (status, err) == (0, "") and "accuracy 71.25 %" in printed
    resnet = load(out, narrow(norm), build_model if norm == "EvoNormS0" else build_backbone)
    own = {k: v for k, v in classifier.state_dict().items() if "num_batches" not in k}
    theirs = resnet.state_dict()
    theirs = {k: v for k, v in theirs.items() if "num_batches" not in k}
    assert own.keys() - theirs.keys() == {"linear.weight", "linear.bias"}
    assert theirs.keys() <= own.keys()
    assert all(torch.equal(value, own[name]) for name, value in theirs.items())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = resnet(x)["res5"]
        torch.testing.assert_close(classifier.linear(features.mean((2, 3))), classifier(x))


def test_a_basic_classifier_too(checkpoint, tmp_path, call):
    folder, classifier = checkpoint("MODEL.NAME", "resnet18", "MODEL.WIDTH", 1.0)
    out = tmp_path / "r18.pkl"
    assert call(folder / "checkpoint.pth", "-o", out)[0] == 0
    sizes = ("MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    resnet = load(out, narrow("EvoNormS0", "MODEL.RESNETS.DEPTH", 18, *sizes))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = resnet(x)["res5"]
        torch.testing.assert_close(classifier.linear(features.mean((2, 3))), classifier(x))


def test_what_a_file_holds(checkpoint, tmp_path, call):
    folder, _ = checkpoint()
    out = tmp_path / "backbone.pkl"
    call(folder, "-o", out)
    content = pickle.loads(out.read_bytes())
    assert content.keys() == {"model", "__author__", "matching_heuristics", "backbone"}
    # A bare norm.weight or conv.weight would match those of an FPN and of heads.
    assert all(re.match(r"(stem|res[2-5]\.\d+)\.\w+\.", name) for name in content["model"])
    assert all(isinstance(value, np.ndarray) for value in content["model"].values())
    assert len(content["model"]) == 3 * 53 + 33  # kernels, weights and biases; v
    backbone = content["backbone"]
    assert backbone["accuracy"] == 71.25 and "NORM: EvoNormS0" in backbone["config"]
    assert backbone["settings"] == {
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.NORM": "EvoNormS0",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.NUM_GROUPS": 1,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.EVONORM.NUM_GROUPS": 32,
        "MODEL.EVONORM.GROUP_SIZE": 0,
        "MODEL.EVONORM.EPS": 1e-5,
        "MODEL.EVONORM.LINEAR": "",
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [127.5] * 3,
        "MODEL.PIXEL_STD": [127.5] * 3,
    }
    assert call(folder, "-o", out)[2].startswith(f"export_backbone.py: {out} exists: ")


def test_detectron2_itself_loads_it(checkpoint, tmp_path, call):
    folder, classifier = checkpoint("MODEL.NORM", "BN-ReLU")
    call(folder, "-o", tmp_path / "backbone.pkl")
    cfg = narrow("BN", "MODEL.RPN.NORM", "")
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(tmp_path / "backbone.pkl"))
    own = model.backbone.bottom_up.state_dict()
    for name, value in classifier.state_dict().items():
        assert "linear" in name or torch.equal(own[name], value)


# A setting of the config, and what the line says to set.
WRONG = [
    ("MODEL.RESNETS.NORM EvoNormB0", "MODEL.RESNETS.NORM EvoNormS0"),
    ("MODEL.RESNETS.NORM BN", "MODEL.RESNETS.NORM EvoNormS0"),
    ("MODEL.EVONORM.EPS 1e-3", "MODEL.EVONORM.EPS 1e-05"),
    ("MODEL.EVONORM.NUM_GROUPS 8", "MODEL.EVONORM.NUM_GROUPS 32"),
    ("MODEL.EVONORM.GROUP_SIZE 16", "MODEL.EVONORM.GROUP_SIZE 0"),
    ("MODEL.EVONORM.LINEAR BN", "MODEL.EVONORM.LINEAR ''"),
    ("INPUT.FORMAT BGR", "INPUT.FORMAT RGB"),
    ("MODEL.PIXEL_MEAN [1.0,2.0,3.0]", "MODEL.PIXEL_MEAN '[127.5,127.5,127.5]'"),
    ("MODEL.PIXEL_STD [1.0,1.0,1.0]", "MODEL.PIXEL_STD '[127.5,127.5,127.5]'"),
    ("MODEL.RESNETS.STRIDE_IN_1X1 True", "MODEL.RESNETS.STRIDE_IN_1X1 False"),
    ("MODEL.RESNETS.DEPTH 101", "MODEL.RESNETS.DEPTH 50"),
    ("MODEL.RESNETS.WIDTH_PER_GROUP 16", "MODEL.RESNETS.WIDTH_PER_GROUP 8"),
]


class TestRefusals:
    @pytest.fixture
    def exported(self, checkpoint, tmp_path, call):
        call(checkpoint()[0], "-o", tmp_path / "backbone.pkl")
        return tmp_path / "backbone.pkl"

    def test_other_settings(self, exported):
        settings = pickle.loads(exported.read_bytes())["backbone"]["settings"]
        for wrong, right in WRONG:
            with pytest.raises(UserError) as error:
                check_backbone(settings, narrow("EvoNormS0", *wrong.split()), "a.pkl")
            assert str(error.value) == (
                "MODEL.WEIGHTS a.pkl: its weights need settings that the config does not have: "
                f"set {right}"
            )
        line = refusal(exported, narrow("EvoNormS0", "INPUT.FORMAT", "BGR", *WRONG[0][0].split()))
        assert line.endswith("set MODEL.RESNETS.NORM EvoNormS0 INPUT.FORMAT RGB")

    def test_a_formula_is_its_name(self, exported):
        load(exported, narrow("EvoNormS0", "MODEL.RESNETS.NORM", "sigmoid(x * v1) * x / std_g(x)"))

    def test_a_checkpoint_of_a_classifier(self, checkpoint):
        folder, _ = checkpoint()
        line = refusal(folder / "checkpoint.pth", narrow("EvoNormS0"))
        assert "a checkpoint of train_classifier.py; tools/export_backbone.py makes" in line

    def test_weights_of_which_none_fits(self, tmp_path):
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
        line = refusal(tmp_path / "resnet18.pth", narrow("EvoNormS0"))
        assert "not one of its weights is in this model" in line
        assert "export_backbone.py --from torchvision" in line

    def test_a_model_that_no_detector_has(self, checkpoint, call):
        folder, _ = checkpoint("MODEL.NAME", "preact_resnet8", "MODEL.ZERO_INIT_LAST", False)
        status, _, err = call(folder)
        assert status == 2 and err.count("\n") == 1
        assert "MODEL.NAME is preact_resnet8, which no detector has" in err

    @pytest.mark.parametrize(
        "arguments, line",
        [
            (["absent"], "No such file or directory: 'absent'"),
            (["other.pth"], "other.pth: not a checkpoint of train_classifier.py"),
            (["other.pth", "--from", "torchvision"], "not a ResNet of torchvision in Detectron2's"),
            (["other.pth", "--from", "detectron2"], "not R-50-GN or R-101-GN of Detectron2's"),
            (["half.pth", "--from", "timm"], "half.pth: damaged, or not a checkpoint"),
            (["half.safetensors", "--from", "timm"], "half.safetensors: damaged, or not a"),
            (["other.pth", "-o", "backbone.pth"], "-o backbone.pth: Detectron2 reads such a file"),
            (["other.pth", "--norm", "GN"], "--norm goes with --from"),
            (
                ["resnet50d.pth", "--from", "timm"],
                "not a ResNet of timm in Detectron2's layout, as",
            ),
        ],
    )
    def test_bad_input_is_one_line(self, arguments, line, call, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        torch.save({"a": torch.ones(1)}, "other.pth")
        if "resnet50d.pth" in arguments:
            torch.save(timm.create_model("resnet50d").state_dict(), "resnet50d.pth")
        for name in (x for x in ("half.pth", "half.safetensors") if x in arguments):
            Path(name).write_bytes(Path("other.pth").read_bytes()[:99])
        status, out, err = call(*arguments)
        assert (status, out) == (2, "") and err.count("\n") == 1 and line in err
        assert not Path("backbone.pkl").exists()


def with_statistics(model):
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(m.running_var, 0.5, 1.5)
            torch.nn.init.normal_(m.running_mean, 0, 0.1)
    return model.eval()


def public(norm, *overrides):
    """A config with a whole backbone, and the settings of torchvision's images."""
    norms = [x for key in ("RESNETS", "FPN") for x in (f"MODEL.{key}.NORM", norm)]
    return load_config(
        STOCK,
        ["MODEL.DEVICE", "cpu", "MODEL.EVONORM.LINEAR", "", *norms, *ZOO, *map(str, overrides)],
    )


class TestPublicWeights:
    @pytest.mark.parametrize(
        "name, norm", [("resnet18", "BN"), ("resnet50", "BN-ReLU"), ("resnext50_32x4d", "BN")]
    )
    def test_torchvisions_compute_the_same(self, name, norm, tmp_path, call):
        theirs = with_statistics(getattr(torchvision.models, name)())
        torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
        out = tmp_path / "backbone.pkl"
        arguments = ("--from", "torchvision", tmp_path / "theirs.pth", "-o", out, "--norm", norm)
        assert call(*arguments)[0] == 0
        layout = {"resnet18": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64}}.get(name, {})
        if "resnext" in name:
            layout = {"NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4}
        pairs = [x for key, value in layout.items() for x in (f"MODEL.RESNETS.{key}", value)]
        resnet = load(out, public(norm, *pairs))
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            features = resnet(x)["res5"]
            torch.testing.assert_close(theirs.fc(features.mean((2, 3))), theirs(x))

    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_timms_compute_the_same(self, suffix, tmp_path, call):
        theirs = with_statistics(timm.create_model("resnet18"))
        file, out = tmp_path / f"theirs.{suffix}", tmp_path / "backbone.pkl"
        if suffix == "pth":
            torch.save(theirs.state_dict(), file)
        else:
            from safetensors.torch import save_file

            save_file(theirs.state_dict(), file)
        assert call("--from", "timm", file, "-o", out)[0] == 0
        layout = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
        resnet = load(out, public("FrozenBN", *layout))
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            features = resnet(x)["res5"]
            torch.testing.assert_close(theirs.forward_features(x), features)

    def test_group_norm_of_the_zoo(self, tmp_path, call):
        """Written by Caffe2's names, which are Detectron's (resnet.py there), with its momenta."""
        sizes = "MODEL.RESNETS.STEM_OUT_CHANNELS 32 MODEL.RESNETS.RES2_OUT_CHANNELS 128".split()
        sizes += ("MODEL.RESNETS.WIDTH_PER_GROUP", "32")
        cfg = public("GN", *sizes)
        stock = build_resnet_backbone(cfg, ShapeSpec(channels=3))
        names = {}  # Caffe2's by Detectron2's
        for own in stock.state_dict():
            name = own.replace("stem.", "").replace("norm.weight", "gn_s")
            name = name.replace("norm.bias", "gn_b").replace("shortcut", "branch1")
            name = re.sub(r"(res.*)conv(\d)", lambda m: f"{m[1]}branch2{'_abc'[int(m[2])]}", name)
            names[own] = re.sub("weight$", "w", name).replace(".", "_")
        blobs = {names[k]: np.random.rand(*v.shape) for k, v in stock.state_dict().items()}
        blobs |= {f"{k}_momentum": v for k, v in blobs.items()}
        blobs |= {"fc1000_w": np.ones((1000, 2048)), "fc1000_b": np.ones(1000)}
        assert {"conv1_w", "conv1_gn_s", "res2_0_branch2a_gn_b", "res5_2_branch2c_w"} <= set(blobs)
        (tmp_path / "R-50-GN.pkl").write_bytes(pickle.dumps({"blobs": blobs}, 2))
        out = tmp_path / "backbone.pkl"
        assert call("--from", "detectron2", tmp_path / "R-50-GN.pkl", "-o", out)[0] == 0
        line = refusal(out, cfg)
        assert line.endswith(
            "set INPUT.FORMAT BGR MODEL.PIXEL_MEAN '[103.53,116.28,123.675]' "
            "MODEL.PIXEL_STD '[1.0,1.0,1.0]'"
        )
        right = re.findall(r"([A-Z_.]+) '?(\S+?)'?(?=\s|$)", line.partition(": set ")[2])
        cfg = public("GN", *sizes, *(x for pair in right for x in pair))
        for own, value in load(out, cfg).state_dict().items():
            torch.testing.assert_close(value, torch.tensor(blobs[names[own]]).float())

    @pytest.mark.parametrize("norm", ["EvoNormS0", "GN", "BN-Swish"])
    def test_another_norm_is_refused(self, norm, tmp_path, call):
        file = tmp_path / "resnet18.pth"
        torch.save(torchvision.models.resnet18().state_dict(), file)
        status, _, err = call("--from", "torchvision", file, "--norm", norm)
        assert status == 2 and "was trained with BN, whose weights are nonsense in another" in err


def test_layers_without_parameters_of_their_own_say_whose_they_are(tmp_path):
    """As S1 has no v, only the file tells its weights from another norm's."""
    cfg = narrow("EvoNormS1")
    weights = build_backbone(cfg).bottom_up.state_dict()
    settings = {"MODEL.RESNETS.NORM": "EvoNormS1"}
    write_backbone(tmp_path / "own.pkl", weights, settings, "test")
    load(tmp_path / "own.pkl", cfg)
    del weights._metadata
    write_backbone(tmp_path / "silent.pkl", weights, settings, "test")
    with pytest.raises(ValueError, match="does not say that it was trained with EvoNormS1"):
        load(tmp_path / "silent.pkl", cfg)


@pytest.mark.slow
def test_from_garments_to_a_detector(tmp_path, digits_root, tiny_run, call):
    """Trained, exported, and in a detector whose frozen stages are the classifier's to the bit."""
    folder, out = tmp_path / "garments", tmp_path / "backbone.pkl"
    settings = ("SOLVER.IMS_PER_WORKER", 200, "SOLVER.BASE_LR", 0.02)
    settings += ("SOLVER.EPOCHS", 1, "SOLVER.LOG_PERIOD", 0)
    # Of res5's maps of one pixel, a group of one channel has no deviation.
    settings += ("MODEL.NUM_GROUPS", 4)
    result = train_classifier(of_classifier("OUTPUT_DIR", folder, *settings))
    assert result["accuracy"] > 20  # chance is 10
    assert call(folder, "-o", out)[0] == 0
    content = pickle.loads(out.read_bytes())
    assert content["backbone"]["accuracy"] == result["accuracy"]
    register_digits(digits_root)
    pairs = {"SOLVER.MAX_ITER": 2, "OUTPUT_DIR": tmp_path / "run", "MODEL.WEIGHTS": out}
    pairs |= {"MODEL.EVONORM.NUM_GROUPS": 4, "MODEL.EVONORM.LINEAR": ""}
    pairs |= {"MODEL.RESNETS.RES2_OUT_CHANNELS": 32, "MODEL.BACKBONE.FREEZE_AT": 2}
    pairs |= {"INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": [127.5] * 3}
    pairs |= {"MODEL.PIXEL_STD": [127.5] * 3, "DATALOADER.NUM_WORKERS": 0}
    file, values = tiny_run("EvoNormS0", *(x for pair in pairs.items() for x in pair))
    train(load_config(file, values))
    state = torch.load(tmp_path / "run/model_final.pth", weights_only=True)["model"]
    for name, value in content["model"].items():
        same = np.array_equal(state[f"backbone.bottom_up.{name}"], value)
        assert same or name.startswith(("res3", "res4", "res5"))
        assert not same or value.ndim == 1 or name.startswith(("stem", "res2"))
