"""Checkpoints of another norm are refused; one's own load back."""

import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_backbone

from evonorm import list_norm_acts
from evonorm_d2 import resolve

LIKE_TORCH = ("BN-ReLU", "BN-PReLU", "BN-Swish", "BN-Swish-1", "GN-ReLU", "GN-Swish", "LN-ReLU")
OTHERS = [name for name in list_norm_acts() if name not in LIKE_TORCH]


@pytest.fixture
def build_r50(tiny_cfg):
    """The backbone alone, as its weights are what an ImageNet checkpoint has."""

    def make(norm, fpn_norm=None):
        norms = (norm, fpn_norm or norm)
        width = 32 if any("GN" in name for name in norms) else 8  # stock GN has 32 groups
        cfg = tiny_cfg(norms[0], "MODEL.FPN.NORM", norms[1], width=width)
        return build_backbone(resolve(cfg))

    return make


def save_torch(model, folder):
    DetectionCheckpointer(model, str(folder)).save("model")
    return str(folder / "model.pth")


def save_caffe2(model, folder):
    """As Detectron2's R-50.pkl: arrays with the bottom-up network's bare names, two for a norm."""
    arrays = {
        name.replace("bottom_up.", ""): value.numpy()
        for name, value in model.state_dict().items()
        if "bottom_up." in name and "running" not in name and "num_batches" not in name
    }
    data = {"model": arrays, "__author__": "Caffe2", "matching_heuristics": True}
    (folder / "R-50.pkl").write_bytes(pickle.dumps(data))
    return str(folder / "R-50.pkl")


def load(model, path):
    return DetectionCheckpointer(model).load(path)


def start(model):
    """Parameters unlike those of a new model, so that loading shows."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model


def check_refused(model, norm, path):
    with pytest.raises(ValueError) as error:
        load(model, path)
    message = str(error.value)
    assert "\n" not in message and norm in message
    assert ".norm: " in message  # where
    assert "train from scratch" in message  # what would be right


@pytest.mark.parametrize("norm", OTHERS)
def test_batch_norm_weights_are_refused(norm, build_r50, tmp_path):
    check_refused(build_r50(norm), norm, save_torch(build_r50("BN"), tmp_path))


NAMED = ["EvoNormB0", "EvoNormB1", "EvoNormS0", "EvoNormS1", "EvoNormS2", "FRN", "PixelNorm-ReLU"]


@pytest.mark.parametrize("norm", NAMED)
def test_imagenet_weights_of_caffe2_are_refused(norm, build_r50, tmp_path):
    check_refused(build_r50(norm), norm, save_caffe2(build_r50("BN"), tmp_path))


@pytest.mark.parametrize("norm", NAMED)
@pytest.mark.parametrize("other", ["GN", "FrozenBN", "SyncBN"])
def test_other_weights_are_refused(norm, other, build_r50, tiny_cfg, tmp_path):
    width = 32 if other == "GN" else 8
    model = build_backbone(resolve(tiny_cfg(norm, width=width)))
    check_refused(model, norm, save_torch(build_r50(other), tmp_path))


@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0"])
@pytest.mark.parametrize("other", ["BN", "GN", "SyncBN"])
def test_affine_sites_refuse_them_too(norm, other, build_r50, tmp_path):
    """An FPN with an EvoNorm has its affine form only, which has no v to be missed."""
    path = save_torch(build_r50("FrozenBN", other), tmp_path)
    check_refused(build_r50("FrozenBN", norm), norm, path)


@pytest.mark.parametrize("norm", list_norm_acts())
def test_ones_own_weights_load_back(norm, build_r50, tmp_path):
    model = start(build_r50(norm))
    path = save_torch(model, tmp_path)
    copy = build_r50(norm)
    load(copy, path)
    for (name, a), b in zip(model.state_dict().items(), copy.state_dict().values()):
        assert torch.equal(a, b), name
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(model.eval()(x).values(), copy.eval()(x).values()):
            assert torch.equal(a, b)


@pytest.mark.parametrize("save", [save_torch, save_caffe2])
def test_batch_norm_weights_load_into_bn_relu(save, build_r50, tmp_path):
    stock = build_r50("BN")
    if save is save_torch:
        start(stock)
    else:  # which holds no running statistics
        for parameter in stock.bottom_up.parameters():
            if parameter.dim() == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model = build_r50("BN-ReLU")
    load(model, save(stock, tmp_path))
    if save is save_caffe2:
        model.load_state_dict(
            {k: v for k, v in stock.state_dict().items() if "bottom_up" not in k}, strict=False
        )
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(stock.eval()(x).values(), model.eval()(x).values()):
            torch.testing.assert_close(a, b)


def test_group_norm_weights_load_into_gn_relu(build_r50, tmp_path):
    stock = start(build_r50("GN"))
    model = build_r50("GN-ReLU")
    load(model, save_torch(stock, tmp_path))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(stock(x).values(), model(x).values()):
            torch.testing.assert_close(a, b)


def test_a_whole_detector_goes_through_a_file(tiny_cfg, build, batch, tmp_path):
    """Statistics per level in the RPN included."""
    cfg = tiny_cfg("EvoNormB0")
    model = start(build(cfg))
    path = save_torch(model, tmp_path)
    copy = build(cfg)
    load(copy, path)
    with torch.no_grad():
        for a, b in zip(model.eval()(batch()), copy.eval()(batch())):
            assert torch.equal(a["instances"].scores, b["instances"].scores)
