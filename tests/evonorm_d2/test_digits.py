"""The digits data set, read back with pycocotools, Pillow and scikit-learn."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.datasets import load_digits

from evonorm_d2.data import register_digits, write_digits
from evonorm_d2.data.scenes import STYLE, load_scans

ROOT = Path(__file__).parents[2]
COUNTS = {"train": 40, "val": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets") / "digits"
    assert write_digits(folder, **COUNTS)
    return folder


@pytest.fixture(scope="module", params=["train", "val"])
def split(request):
    return request.param


@pytest.fixture(scope="module")
def coco(folder, split):
    return COCO(str(folder / "annotations" / f"instances_{split}.json"))


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    first = hashes(folder)
    assert len(first) == 2 + sum(COUNTS.values())
    assert len(set(first.values())) == len(first)  # no two images are equal
    write_digits(tmp_path / "again" / "other name", **COUNTS)
    assert hashes(tmp_path / "again" / "other name") == first
    write_digits(tmp_path / "seed", **COUNTS, seed=1)
    assert not set(hashes(tmp_path / "seed").values()) & set(first.values())


def test_an_image_does_not_depend_on_the_number_of_images(folder, tmp_path):
    write_digits(tmp_path / "few", train=3, val=2)
    few, many = hashes(tmp_path / "few"), hashes(folder)
    pngs = [name for name in few if name.endswith(".png")]
    assert len(pngs) == 5
    assert all(few[name] == many[name] for name in pngs)


def test_images(folder, split, coco):
    assert len(coco.imgs) == COUNTS[split]
    names = {path.name for path in (folder / split).iterdir()}
    assert names == {image["file_name"] for image in coco.imgs.values()}
    for entry in coco.imgs.values():
        image = Image.open(folder / split / entry["file_name"])
        assert (image.mode, image.size) == ("RGB", (128, 128))
        assert (entry["width"], entry["height"]) == (128, 128)


def test_masks_boxes_and_areas_agree(coco):
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation).astype(bool)
        assert mask.shape == (128, 128)
        ys, xs = np.nonzero(mask)
        tight = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert annotation["bbox"] == tight
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == 0


def test_later_digits_cover_earlier_ones(coco):
    covered = 0
    for image_id in coco.imgs:
        annotations = coco.imgToAnns[image_id]
        assert STYLE.digits[0] <= len(annotations) <= STYLE.digits[1]
        masks = np.array([coco.annToMask(annotation) for annotation in annotations])
        assert masks.sum(0).max() == 1  # every pixel belongs to one digit at most
        assert annotations[-1]["area"] == annotations[-1]["full_area"]
        for index, annotation in enumerate(annotations):
            hidden = annotation["full_area"] - annotation["area"]
            assert 0 <= hidden <= masks[index + 1 :].sum()
            assert annotation["area"] >= STYLE.min_visible * annotation["full_area"]
            covered += hidden > 0
    assert covered > 0


def test_ink_stands_out_from_what_surrounds_it(folder, split, coco):
    lighter = []
    for image_id, entry in coco.imgs.items():
        image = np.asarray(Image.open(folder / split / entry["file_name"]).convert("L")) / 255
        masks = [coco.annToMask(a).astype(bool) for a in coco.imgToAnns[image_id]]
        background = np.median(image[~np.any(masks, axis=0)])
        lighter += [np.median(image[mask]) - background for mask in masks]
    assert min(lighter) > STYLE.contrast[0] - STYLE.texture


def test_every_class_appears_and_every_digit_is_a_real_scan(coco):
    assert [category["name"] for category in coco.cats.values()] == list("0123456789")
    assert {a["category_id"] for a in coco.anns.values()} == set(coco.cats)
    target = load_digits().target
    for annotation in coco.anns.values():
        name = coco.cats[annotation["category_id"]]["name"]
        assert name == str(target[annotation["scan"]])


def test_masks_have_the_shape_of_their_scans(coco):
    """A mask resembles the scan it names more than a scan of the same digit chosen at random."""
    scans = load_digits().images / 16
    target = load_digits().target
    rng = np.random.default_rng(0)

    def normalized(mask):
        ys, xs = np.nonzero(mask)
        crop = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].astype(np.float32)
        values = np.asarray(Image.fromarray(crop).resize((16, 16), Image.Resampling.BOX)).ravel()
        return (values - values.mean()) / np.linalg.norm(values - values.mean())

    def outline(scan):
        return normalized(
            np.asarray(Image.fromarray(scan.astype(np.float32)).resize((64, 64))) > 0.4
        )

    named, other = [], []
    for annotation in coco.anns.values():
        if annotation["area"] == annotation["full_area"]:
            mask = normalized(coco.annToMask(annotation))
            scan = annotation["scan"]
            same_class = np.flatnonzero((target == target[scan]) & (np.arange(1797) != scan))
            named.append(mask @ outline(scans[scan]))
            other.append(mask @ outline(scans[rng.choice(same_class)]))
    assert np.mean(named) > np.mean(other) + 0.1
    assert np.mean(np.array(named) > other) > 0.8


def test_no_scan_is_in_both_splits(folder):
    train, val = (set(load_scans(split)[2].tolist()) for split in ("train", "val"))
    assert not train & val
    assert train | val == set(range(1797))
    for rows, split in ((train, "train"), (val, "val")):
        json_file = folder / "annotations" / f"instances_{split}.json"
        assert {a["scan"] for a in json.loads(json_file.read_text())["annotations"]} <= rows
    kept = np.bincount(load_digits().target[sorted(val)]) / np.bincount(load_digits().target)
    assert np.allclose(kept, 0.2, atol=0.005)


def test_the_splits_do_not_share_backgrounds(folder):
    def corners(split):
        paths = sorted((folder / split).iterdir())[: min(COUNTS.values())]
        return np.array([np.asarray(Image.open(path))[0, 0] for path in paths], dtype=float)

    assert np.abs(corners("train") - corners("val")).mean() > 30  # of 255


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_ground_truth_as_detections_has_an_ap_of_100(coco, task):
    keys = ("image_id", "category_id", "bbox", "segmentation")
    detections = [{**{k: a[k] for k in keys}, "score": 1.0} for a in coco.anns.values()]
    if task == "segm":
        for detection in detections:
            del detection["bbox"]
    evaluation = COCOeval(coco, coco.loadRes(detections), task)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0, abs=1e-9)  # AP at IoU 0.50:0.95


def test_nothing_is_overwritten(tmp_path):
    folder = tmp_path / "digits"
    assert write_digits(folder, train=2, val=1)
    before = hashes(folder)
    assert not write_digits(folder, train=2, val=1)
    with pytest.raises(FileExistsError, match=r"digits exists and is not .*train 3, val 1"):
        write_digits(folder, train=3, val=1)
    assert hashes(folder) == before

    mine = tmp_path / "mine"
    mine.mkdir()
    assert write_digits(mine, train=2, val=1)  # an empty folder may be filled
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        write_digits(tmp_path / "notes", train=2, val=1)
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["a.txt"]
    with pytest.raises(FileExistsError):
        write_digits(tmp_path / "notes" / "a.txt", train=2, val=1)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_digits(tmp_path / "digits", train=2, val=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "value"), [("train", 0), ("val", -1), ("size", 63), ("seed", -1)]
)
def test_bad_arguments(tmp_path, argument, value):
    with pytest.raises(ValueError, match=f"{argument} must .*, got {value}"):
        write_digits(tmp_path / "digits", **{"train": 1, "val": 1, argument: value})
    assert list(tmp_path.iterdir()) == []


def test_size_scales_the_scene(tmp_path):
    write_digits(tmp_path / "digits", train=1, val=6, size=256)
    coco = COCO(str(tmp_path / "digits" / "annotations" / "instances_val.json"))
    heights = [a["bbox"][3] for a in coco.anns.values()]
    assert min(heights) > 0.15 * 256
    assert max(heights) < 0.65 * 256


def test_the_tool(tmp_path):
    def make(*arguments):
        command = [sys.executable, ROOT / "tools" / "make_digits.py", *arguments]
        environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path)}
        environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{environment.get('PYTHONPATH', '')}"
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    done = make("--train", "2", "--val", "1")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'digits'}: written\n")
    assert len(list((tmp_path / "digits" / "train").iterdir())) == 2
    refused = make("--train", "3", "--val", "1")
    assert refused.returncode == 2
    assert refused.stderr.startswith("make_digits.py: ")
    assert refused.stderr.count("\n") == 1


def test_registered_with_detectron2(folder, split, coco, monkeypatch):
    pytest.importorskip("detectron2")
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.detection_utils import annotations_to_instances

    name = f"digits_{split}"
    for registered in ("digits_train", "digits_val"):
        DatasetCatalog.pop(registered, None)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder.parent))
    register_digits()
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == list("0123456789")
    assert metadata.evaluator_type == "coco"
    assert COCO(metadata.json_file).imgs == coco.imgs
    assert [record["image_id"] for record in records] == list(coco.imgs)
    for record in records:
        assert Image.open(record["file_name"]).size == (record["width"], record["height"])
        truth = coco.imgToAnns[record["image_id"]]
        instances = annotations_to_instances(
            [{**a, "bbox_mode": 0, "bbox": xyxy(a["bbox"])} for a in record["annotations"]],
            (record["height"], record["width"]),
            mask_format="bitmask",
        )
        assert instances.gt_classes.tolist() == [a["category_id"] - 1 for a in truth]
        masks = np.array([mask_util.decode(a["segmentation"]) for a in truth])
        assert np.array_equal(instances.gt_masks.tensor.numpy(), masks)
        assert instances.gt_boxes.tensor.tolist() == [xyxy(a["bbox"]) for a in truth]


def test_registering_again_and_a_missing_data_set(tmp_path):
    pytest.importorskip("detectron2")
    from detectron2.data import DatasetCatalog

    for root in (tmp_path / "a", tmp_path / "b"):  # a named root replaces the one before
        register_digits(root)
        register_digits()  # and the default does not
        with pytest.raises(FileNotFoundError) as raised:
            DatasetCatalog.get("digits_val")
        command = f"python tools/make_digits.py --out {root / 'digits'}"
        assert str(raised.value).endswith(command)
        assert "\n" not in str(raised.value)


def xyxy(box):
    x, y, width, height = box
    return [x, y, x + width, y + height]
