"""tools/export_model.py: the files give what the model gives, on images of another size too."""

from __future__ import annotations

import re

import numpy as np
import onnxruntime
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from evonorm_d2 import export
from evonorm_d2.checkpoint import Checkpointer
from evonorm_d2.data import register_digits
from evonorm_d2.run_config import load_config
from evonorm_runs.errors import UserError

SMALL = {  # few layers, as tracing takes time for each
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.OUT_FEATURES": ["res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res4", "res5"],
    "MODEL.RPN.IN_FEATURES": ["p4", "p5", "p6"],
    "MODEL.ROI_HEADS.IN_FEATURES": ["p4", "p5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64]],
}
FIELDS = ["pred_boxes", "pred_classes", "pred_masks", "scores"]
FEATURES = ["p4", "p5", "p6"]


@pytest.fixture(scope="module")
def run(digits_root, tmp_path_factory, tiny_run):
    """An untrained run, its folder and its model."""
    register_digits(digits_root)
    cfg = load_config(*tiny_run("EvoNormS0", *(x for pair in SMALL.items() for x in pair)))
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(cfg.dump())
    Checkpointer(model, str(folder)).save("model_final", iteration=0)
    return folder, model


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(export, "RUNS", 1)


def image(height, width):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)


def close(found, expected):
    assert len(found) == len(expected)
    for x, y in zip(found, expected):
        scale = float(y.abs().max())
        torch.testing.assert_close(torch.as_tensor(x), y, rtol=1e-4, atol=1e-5 * scale)


def detector(model, x):
    with torch.no_grad():
        fields = model.inference([{"image": x}], do_postprocess=False)[0].get_fields()
    return [getattr(fields[name], "tensor", fields[name]) for name in FIELDS]


def features(model, x):
    with torch.no_grad():
        found = model.backbone(x)
    return [found[name] for name in FEATURES]


def said(out, path, form, outputs):
    """Whether the tool says names, parity and time."""
    first, parity, seconds = out.splitlines()
    assert first == f"{path}: {form}, outputs {', '.join(outputs)}"
    values = re.findall(r" (\w+) (\d\.\de[+-]\d+)", parity)
    assert [name for name, _ in values] == outputs and all(float(x) < 1e-3 for _, x in values)
    assert re.fullmatch(r"[\d.]+ seconds per image of 64x64 pixels, the model .* [\d.]+", seconds)
    return parity


def test_torchscript(run, call, tmp_path):
    folder, model = run
    path = tmp_path / "new/model.pt"
    status, out, err = call(folder, "-o", path, "--format", "torchscript")
    assert status == 0, err
    assert re.match(r"5 and 5 objects in .*val/\w+\.png, ", said(out, path, "torchscript", FIELDS))
    loaded = torch.jit.load(path)
    x = image(128, 80)
    with torch.jit.optimized_execution(False):  # which would compile for a second
        close(loaded(x), detector(model, x))


def test_onnx_by_onnx_runtime(run, call, tmp_path):
    folder, model = run
    path = tmp_path / "model.onnx"
    status, out, err = call(folder / "model_final.pth", "-o", path, "--format", "onnx")
    assert status == 0, err
    said(out, path, "onnx", FIELDS)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type) == ("image", "tensor(uint8)")
    assert [x.name for x in session.get_outputs()] == FIELDS
    x = image(128, 80)
    close(session.run(None, {"image": x.numpy()}), detector(model, x))


def test_torch_export_takes_the_backbone(run, call, tmp_path):
    folder, model = run
    path = tmp_path / "model.pt2"
    arguments = (folder, "-o", path, "--format", "torch.export")
    status, out, err = call(*arguments)
    line = err.splitlines()[-1]
    assert status == 2 and not out and not path.exists()
    assert "torch.export can't take this GeneralizedRCNN: Could not guard on data" in line
    assert line.endswith("--backbone exports the backbone with its FPN")
    status, out, err = call(*arguments, "--backbone")
    assert status == 0, err
    assert said(out, path, "torch.export", FEATURES).startswith("largest differences")
    x = torch.randn(1, 3, 64, 64)
    close(torch.export.load(path).module()(x), features(model, x))


def test_what_is_refused(run, call, tmp_path, monkeypatch):
    folder, model = run
    path = tmp_path / "model.pt"
    path.write_text("mine")
    status, _, err = call(folder, "-o", path, "--format", "torchscript")
    assert status == 2 and "exists: name another file with -o, or add --overwrite" in err
    assert path.read_text() == "mine"
    assert call(folder, "-o", path, "--format", "onnxx")[0] == 2
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.png")
    monkeypatch.setattr(export, "_instances", lambda *_: {"scores": torch.zeros(0)})
    arguments = ("--format", "torchscript", "--overwrite", "--image", tmp_path / "x.png")
    status, _, err = call(folder, "-o", path, *arguments)
    assert status == 2 and f"{tmp_path / 'x.png'}: no object was found" in err
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda x: x + 0.1, "its scores would differ by 1.0e-01"),
        (lambda x: x * float("nan"), "its scores would differ by nan"),
        (lambda x: x[:1], r"its scores would have the shape \(1,\), the model's have \(2,\)"),
    ],
)
def test_other_outputs_are_not_written(change, reason, tmp_path, monkeypatch):
    def changed(adapter, x, outputs):
        return b"", lambda x: tuple(map(change, adapter(x)))

    monkeypatch.setitem(export.FORMATS, "torchscript", changed)
    monkeypatch.setattr(export, "_check_detector", lambda _: None)
    monkeypatch.setattr(export, "_instances", lambda *_: {"scores": torch.tensor([0.9, 0.5])})
    with pytest.raises(UserError, match=reason):
        export.export_model(torch.nn.Identity(), image(8, 8), "torchscript", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
