"""tools/visualize.py on a run folder made of the ground truth as predictions."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from evonorm_d2.data import register_digits
from evonorm_d2.run_config import load_config
from evonorm_d2.visualize import SIDE

GAP = 4  # between pictures, pixels


@pytest.fixture
def annotations(digits_root):
    return json.loads((digits_root / "digits/annotations/instances_val.json").read_text())


@pytest.fixture
def run(tmp_path, digits_root, tiny_run, annotations):
    register_digits(digits_root)
    folder = tmp_path / "run"
    (folder / "inference").mkdir(parents=True)
    file, values = tiny_run("EvoNormS0")
    config = load_config(file, values).dump()
    # As if trained elsewhere: drawing needs no GPU.
    (folder / "config.yaml").write_text(config.replace("DEVICE: cpu", "DEVICE: cuda"))
    keys = ("image_id", "category_id", "bbox", "segmentation")
    results = [{**{k: a[k] for k in keys}, "score": 0.7} for a in annotations["annotations"]]
    (folder / "inference/coco_instances_results.json").write_text(json.dumps(results))
    return folder


def pictures(path):
    """The pictures of a sheet, row by row."""
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
    step = SIDE + GAP
    rows, columns = ((size - GAP) / step for size in sheet.shape[:2])
    assert rows % 1 == columns % 1 == 0
    corners = [
        (GAP + r * step, GAP + c * step) for r in range(int(rows)) for c in range(int(columns))
    ]
    return [sheet[y : y + SIDE, x : x + SIDE] for y, x in corners]


def changed(picture, image, box):
    """Share of the pixels within a box (x, y, w, h) of an image that a picture of it changes."""
    plain = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    x, y, w, h = (int(value * SIDE / image.shape[0]) for value in box)
    return (np.abs(picture - plain).max(-1) > 40)[y : y + h, x : x + w].mean()


def test_ground_truth_on_the_left_and_predictions_on_the_right(run, call, digits_root, annotations):
    status, out, _ = call(run)
    assert status == 0 and str(run / "sheet.png") in out
    drawn = pictures(run / "sheet.png")
    images = annotations["images"]
    assert len(drawn) == 8  # 3 pairs in rows of two, and an empty place
    for i, image in enumerate(images):
        pixels = np.asarray(Image.open(digits_root / "digits/val" / image["file_name"]))
        for picture in drawn[2 * i : 2 * i + 2]:
            for a in (a for a in annotations["annotations"] if a["image_id"] == image["id"]):
                assert changed(picture, pixels, a["bbox"]) > 0.1
    assert (drawn[6] == 0).all() and (drawn[7] == 0).all()


def test_threshold_and_number_of_images(run, call, digits_root, annotations):
    output = run.parent / "other.png"
    status, _, _ = call(run, "-o", output, "--num", 1, "--score-threshold", 0.8)
    assert status == 0 and not (run / "sheet.png").exists()
    truth, predictions = pictures(output)
    image = annotations["images"][0]
    pixels = np.asarray(Image.open(digits_root / "digits/val" / image["file_name"]))
    everywhere = (0, 0, *pixels.shape[:2])
    assert changed(predictions, pixels, everywhere) < 0.02  # the plain image, drawn larger
    assert changed(truth, pixels, everywhere) > 0.05


def test_the_same_run_gives_the_same_sheet(run, call):
    for name in ("a.png", "b.png"):
        call(run, "-o", run / name)
    assert (run / "a.png").read_bytes() == (run / "b.png").read_bytes()


def test_boxes_without_masks_on_images_of_several_sizes(run, call, digits_root):
    shutil.copytree(digits_root / "digits", run / "digits")
    register_digits(run)
    second = run / "digits/val/000000000002.png"
    Image.open(second).crop((0, 0, 64, 48)).save(second)
    truth = run / "digits/annotations/instances_val.json"
    results = run / "inference/coco_instances_results.json"
    for path in (truth, results):
        content = json.loads(path.read_text())
        for box in content["annotations"] if path == truth else content:
            del box["segmentation"]
        path.write_text(json.dumps(content))
    assert call(run)[0] == 0
    for picture in pictures(run / "sheet.png")[2:4]:
        assert (picture[SIDE * 48 // 64 :] == 0).all()  # padded, not stretched
        assert not (picture[: SIDE * 48 // 64] == 0).all(-1).any(1).all()


def damage(name, content=None):
    def apply(run):
        (run / name).unlink() if content is None else (run / name).write_text(content)

    return apply


@pytest.mark.parametrize(
    "apply, reason",
    [
        (damage("config.yaml"), "no config.yaml"),
        (damage("config.yaml", "SEED: !!python/name:os.system"), "could not determine a constr"),
        (damage("inference/coco_instances_results.json"), "--eval-only --resume"),
        (damage("inference/coco_instances_results.json", "[{"), "not COCO's results"),
        (damage("inference/coco_instances_results.json", '[{"a": 1}]'), "not COCO's results"),
    ],
)
def test_missing_and_broken_files(run, call, apply, reason):
    apply(run)
    status, out, err = call(run)
    assert status == 2 and not out
    (line,) = err.splitlines()
    assert line.startswith("visualize.py: ") and reason in line and str(run) in line


def test_bad_arguments(run, call):
    assert call(run, "--num", 0)[0] == 2
    status, _, err = call(run, "-o", run / "none" / "sheet.png")
    assert status == 2 and str(run / "none" / "sheet.png") in err
    assert call(run, "-o", run / "sheet.nothing")[0] == 2
