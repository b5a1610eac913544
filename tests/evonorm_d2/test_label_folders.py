"""Folders of Pascal VOC's and YOLO's files as data sets, read by globox."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog
from PIL import Image

from evonorm_d2.check_run import check_run
from evonorm_d2.run_config import load_config
from evonorm_runs.errors import UserError

OBJECT = """<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>
<ymax>{}</ymax></bndbox></object>"""
# By image: class and box (x0, y0, x1, y1) of its objects, in pixels of 40x30.
OBJECTS = {"a": [("cow", (2, 3, 12, 13)), ("ant", (10, 6, 30, 24))], "b": [("bee", (4, 3, 24, 9))]}
CLASSES = ["ant", "bee", "cow"]


@pytest.fixture
def folders(tmp_path, forget_own_data):
    """folders(kind): a folder of labels and one of images, of which c has no labels."""
    for folder in ("data/train/labels", "data/train/images"):
        (tmp_path / folder).mkdir(parents=True)
    for name, suffix in (("a", "png"), ("b", "jpg"), ("c", "jpg")):
        image = Image.fromarray(np.full((30, 40, 3), 99, np.uint8))
        image.save(tmp_path / f"data/train/images/{name}.{suffix}")

    def make(kind):
        labels = tmp_path / "data/train/labels"
        for name, objects in OBJECTS.items():
            if kind == "voc":
                inside = "".join(OBJECT.format(label, *box) for label, box in objects)
                size = "<size><width>40</width><height>30</height></size>"
                text = f"<annotation><filename>{name}.jpg</filename>{size}{inside}</annotation>"
                (labels / f"{name}.xml").write_text(text)
            else:
                rows = [
                    f"{CLASSES.index(label)} {(x0 + x1) / 80} {(y0 + y1) / 60} "
                    f"{(x1 - x0) / 40} {(y1 - y0) / 30}\n"
                    for label, (x0, y0, x1, y1) in objects
                ]
                (labels / f"{name}.txt").write_text("".join(rows))
        return [str(labels), str(tmp_path / "data/train/images")]

    return make


@pytest.fixture
def load(tmp_path):
    def from_yaml(paths, *overrides):
        names = {"COCO": {"mine": paths, "again": paths}, "TRAIN": ["mine"], "TEST": ["again"]}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({"DATASETS": names}))
        common = ("MODEL.DEVICE", "cpu", "MODEL.MASK_ON", "False")
        return load_config(str(tmp_path / "own.yaml"), [*common, *map(str, overrides)])

    return from_yaml


@pytest.mark.parametrize("names", ["", "classes.txt", "data.yaml", "DATASETS.CLASSES"])
@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_boxes_and_classes(folders, load, tmp_path, kind, names):
    pytest.importorskip("globox")
    paths, overrides = folders(kind), ()
    if names == "classes.txt":
        (tmp_path / "data/train/labels/classes.txt").write_text("ant\nbee\ncow\n")
    if names == "data.yaml":
        (tmp_path / "data/data.yaml").write_text("names: {0: ant, 1: bee, 2: cow}")
    if names == "DATASETS.CLASSES":
        overrides = (names, CLASSES)
    cfg = load(paths, *overrides)
    expected = ["0", "1", "2"] if kind == "yolo" and not names else CLASSES
    assert cfg.DATASETS.CLASSES == expected and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    check_run(cfg, False, False)
    for data in ("mine", "again"):
        records = DatasetCatalog.get(data)
        found = {
            record["file_name"][len(paths[1]) + 1 :][0]: [
                (CLASSES[a["category_id"]], a["bbox"]) for a in record["annotations"]
            ]
            for record in records
        }
        boxes = {
            name: [(label, [x0, y0, x1 - x0, y1 - y0]) for label, (x0, y0, x1, y1) in objects]
            for name, objects in OBJECTS.items()
        }
        assert found.keys() == ({"a", "b", "c"} if kind == "yolo" else {"a", "b"})
        assert not found.pop("c", None)
        for name, objects in boxes.items():
            for (label, box), (right, expected_box) in zip(found[name], objects):
                assert label == right and box == pytest.approx(expected_box, abs=1e-6)
        assert {(r["width"], r["height"]) for r in records} == {(40, 30)}


def test_what_is_refused(folders, load, tmp_path, monkeypatch):
    pytest.importorskip("globox")
    paths = folders("voc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="a.png: its class cow is none of ant, bee: name all"):
        load(paths, "DATASETS.CLASSES", ["ant", "bee"])
    with pytest.raises(UserError, match="empty: there is no file of labels"):
        load([str(tmp_path / "empty"), str(tmp_path / "empty")])
    with pytest.raises(UserError, match="a.xml: there is no image a.jpg"):
        load([paths[0], str(tmp_path / "empty")])
    (tmp_path / "data/train/labels/a.xml").write_text("<annotation>")
    with pytest.raises(UserError, match="a.xml: not in Pascal VOC's format: "):
        load(paths)
    monkeypatch.setitem(sys.modules, "globox", None)
    with pytest.raises(UserError, match="labels: reading such a folder needs `pip install globox`"):
        load(paths)
