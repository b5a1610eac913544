"""tools/benchmark_training.py on models of milliseconds."""

from __future__ import annotations

import json
import math

import pytest
import torch

from evonorm_repro.benchmark import training as tool


@pytest.fixture
def small(tiny_run):
    """By model, what makes it a small one; Detectron2's own GN takes no fewer than 32 channels."""
    values = dict(zip(*[iter(tiny_run("BN")[1])] * 2))
    widths = [f"{key}.CONV_DIM" for key in ("MODEL.ROI_BOX_HEAD", "MODEL.ROI_MASK_HEAD")]
    widths += [f"MODEL.RESNETS.{key}" for key in ("STEM_OUT_CHANNELS", "WIDTH_PER_GROUP")]
    values |= dict.fromkeys([*widths, "MODEL.FPN.OUT_CHANNELS"], "32")
    values |= {"MODEL.RESNETS.RES2_OUT_CHANNELS": "32", "MODEL.ROI_BOX_HEAD.NUM_CONV": "1"}
    detector = [x for pair in values.items() for x in pair]
    gan = ["MODEL.G_CH", "8", "MODEL.D_CH", "8", "SOLVER.BATCH_SIZE", "4"]
    return {"mask-rcnn-digits": detector, "mask-rcnn-r50-256": detector, "biggan-32": gan}


@pytest.mark.parametrize("model", ["mask-rcnn-r50-256", "biggan-32"])
def test_all_norms_take_turns(call, small, tmp_path, model):
    file = tmp_path / "r.json"
    arguments = ("--model", model, "--repeats", 2, "--device", "cpu", "--json", file)
    status, out, err = call(*arguments, *small[model])
    assert status == 0, err
    record = json.loads(file.read_text())
    assert record["model"] == model
    assert record["command"].startswith(f"python tools/benchmark_training.py --model {model}")
    for key in ("device", "processor", "cores", "threads", "backends", "versions"):
        assert record[key]
    assert [r["norm"] for r in record["results"]] == list(tool.NORMS)
    for r in record["results"]:
        low, high = r["quartiles_s"]
        assert 0 < r["best_s"] <= r["median_s"] < math.inf
        assert 0 < low <= r["median_s"] <= high
        assert f"{r['median_s']:.3f}" in out
    assert {"EvoNormB0 / BN", "EvoNormS0 / GN", "EvoNormS0 / free"} < set(record["ratios"])
    for ratio in record["ratios"].values():
        low, high = ratio["quartiles"]
        assert 0 < low <= ratio["median"] <= high < math.inf


def test_some_of_the_norms(call, small, tmp_path):
    file = tmp_path / "r.json"
    chosen = ("--norms", "EvoNormS0", "free", "--repeats", 2, "--device", "cpu", "--json", file)
    assert call("--model", "biggan-32", *chosen, *small["biggan-32"])[0] == 0
    record = json.loads(file.read_text())
    assert [r["norm"] for r in record["results"]] == ["EvoNormS0", "free"]
    assert list(record["ratios"]) == ["EvoNormS0 / free"]


def test_timms_layers_and_ours_take_turns_on_a_model_of_timms(call, tmp_path):
    file = tmp_path / "r.json"
    arguments = ("--model", "timm/test_efficientnet_evos", "--repeats", 2, "--device", "cpu")
    assert call(*arguments, "--json", file)[0] == 0
    record = json.loads(file.read_text())
    parts = ("training", "evaluation")
    assert [r["norm"] for r in record["results"]] == [
        f"{whose}, {part}" for part in parts for whose in ("timm's", "ours")
    ]
    assert list(record["ratios"]) == [f"ours, {part} / timm's, {part}" for part in parts]
    steps = tool.build_steps("timm/test_efficientnet_evos", "cpu", [])
    kept = [tool.kept_bytes(step) for step in steps.values()]
    assert kept[0] > kept[1] > 0 and kept[2:] == [0, 0]  # ours keeps less


def test_memory_is_that_of_the_tensors_kept():
    weight = torch.ones(3, 10, requires_grad=True)
    x = torch.ones(5, 10)

    def step():
        for width in (1, 2):  # the second is more, and the first is gone by then
            y = torch.cat([x] * width).mm(weight.T).exp()
            (y * y.sin()).sum().backward()

    # Of each row in float32: what mm keeps, 10 values, and y and its sine, 3 each.
    assert tool.kept_bytes(step) == 2 * 5 * (10 + 3 + 3) * 4
    assert tool.kept_bytes(step) == 2 * 5 * (10 + 3 + 3) * 4


@pytest.mark.parametrize("model", ["mask-rcnn-digits", "biggan-32"])
def test_memory_of_all_norms(call, small, tmp_path, model):
    file = tmp_path / "r.json"
    arguments = ("--model", model, "--memory", "--device", "cpu", "--json", file)
    status, out, err = call(*arguments, *small[model])
    assert status == 0, err
    results = json.loads(file.read_text())["results"]
    results = {r["norm"]: r for r in results}
    assert list(results) == list(tool.NORMS)
    again = (tool.RECOMPUTED, tool.CHECKPOINTED)
    kept = {norm: r["kept_bytes"] for norm, r in results.items() if norm not in again}
    assert all(f"{size / 2**20:.1f}" in out for size in kept.values())
    assert 0 < kept.pop(tool.FREE) < min(kept.values())
    assert max(kept.values()) < 1.3 * min(kept.values())
    peaks = {norm: r["peak_bytes"] for norm, r in results.items()}
    assert max(peaks[norm] for norm in again) < peaks["EvoNormS0"]
    assert all(peaks[norm] > size for norm, size in kept.items())


def test_the_peak_is_that_of_what_is_allocated():
    def step():
        x = torch.ones(1000)  # 4000 bytes
        y = x + x
        del x
        return y + 1

    assert 8000 <= tool.peak_bytes(step, "cpu") < 8100


def test_the_mask_head_has_its_full_batch(small):
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from evonorm_d2.run_config import load_config

    file = tool.CONFIGS / tool.DETECTORS["mask-rcnn-digits"][0].format("EvoNormS0")
    cfg = load_config(str(file), small["mask-rcnn-digits"])
    batch = tool.random_scenes(cfg)
    assert [scene["image"].shape for scene in batch] == [(3, 64, 64)] * 2
    for scene in batch:
        boxes = scene["instances"].gt_boxes.tensor
        assert len(boxes) == 2  # a quarter of the 8 regions
        assert (boxes >= 0).all() and (boxes <= 64).all()
        # The mask of a box fills it.
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        filled = scene["instances"].gt_masks.tensor.sum((1, 2))
        torch.testing.assert_close(filled.float(), sides, rtol=0.35, atol=0)
    torch.manual_seed(0)
    with EventStorage() as storage:
        build_model(cfg)(batch)
    assert storage.latest()["roi_head/num_fg_samples"][0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "biggan-33"), "'biggan-33' is not known; known are mask-rcnn-digits, "),
        (("--model", "timm/resnet18"), "found none of timm's EvoNorms in ResNet"),
        (("--model", "timm/resnet_evos"), "--model timm/resnet_evos: Unknown model (resnet_evos)"),
        (("--model", "biggan-32", "--repeats", 0), "--repeats is 0"),
        (("--model", "biggan-32", "--json", "nowhere/r.json"), "no folder nowhere"),
        (("--model", "biggan-64", "MODEL.G_CH", "3"), "ch is 3"),
        (("--model", "mask-rcnn-digits", "MODEL.NOTHING", "1"), "MODEL.NOTHING"),
    ],
)
def test_bad_input_is_one_line_and_status_2(call, arguments, message):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("benchmark_training.py: ")
    assert message in err
    assert err.count("\n") == 1
