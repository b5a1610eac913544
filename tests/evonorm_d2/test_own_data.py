"""Data sets that a config registers: what they set, what they say, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from evonorm_d2.check_run import check_run
from evonorm_d2.run_config import load_config
from evonorm_runs.errors import UserError

CATEGORIES = [  # not in the order of their ids
    {"id": 9, "name": "bee", "color": [0, 0, 200]},
    {"id": 4, "name": "ant", "color": [200, 0, 0]},
    {"id": 7, "name": "cow", "color": [0, 200, 0]},
]
BOX = {"iscrowd": 0, "bbox": [2.0, 3, 10, 10], "area": 100, "segmentation": [[2, 3, 12, 3, 12, 13]]}


@pytest.fixture
def write(tmp_path, forget_own_data):
    """write(name, **changes): a data set of two images and three objects; its two paths."""
    (tmp_path / "images").mkdir()
    for i in (1, 2):
        pixels = np.full((30, 40, 3), 40 * i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{i}.png")

    def make(name, **changes):
        images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)]
        categories = [(1, 9), (1, 4), (2, 7)]
        annotations = [
            {**BOX, "id": k + 1, "image_id": image, "category_id": category}
            for k, (image, category) in enumerate(categories)
        ]
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (tmp_path / f"{name}.json").write_text(json.dumps({**content, **changes}))
        return [str(tmp_path / f"{name}.json"), str(tmp_path / "images")]

    return make


@pytest.fixture
def load(tmp_path):
    """load(data, *overrides): the config with these data sets, trained on the first one."""

    def from_yaml(data, *overrides):
        train, *test = data
        names = {"COCO": data, "TRAIN": [train], "TEST": test}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({"DATASETS": names}))
        common = ("MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "run"))
        return load_config(str(tmp_path / "own.yaml"), [*common, *map(str, overrides)])

    return from_yaml


def refusal(load, *arguments):
    with pytest.raises(UserError) as error:
        check_run(load(*arguments), False, False)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "architecture, node",
    [("GeneralizedRCNN", "ROI_HEADS"), ("RetinaNet", "RETINANET"), ("NormActFCOS", "RETINANET")],
)
def test_the_data_fill_in_the_config(write, load, caplog, architecture, node):
    data = {"my_train": write("train"), "my_val": write("val")}
    cfg = load(data, "MODEL.META_ARCHITECTURE", architecture)
    assert cfg.MODEL[node].NUM_CLASSES == 3 and cfg.is_frozen()
    assert cfg.DATASETS.CLASSES == ["ant", "cow", "bee"]
    (line,) = [x for x in caplog.messages if "NUM_CLASSES" in x]
    assert line == f"MODEL.{node}.NUM_CLASSES is 3, the number of classes of my_train"
    check_run(cfg, False, False)
    metadata = MetadataCatalog.get("my_train")
    assert metadata.thing_colors == [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    records = DatasetCatalog.get("my_train")
    assert [a["category_id"] for r in records for a in r["annotations"]] == [2, 0, 1]
    assert metadata.thing_classes == ["ant", "cow", "bee"]


def test_a_number_of_classes_that_is_named_stays(write, load):
    data = {"my_train": write("train")}
    assert load(data, "MODEL.ROI_HEADS.NUM_CLASSES", 0).MODEL.ROI_HEADS.NUM_CLASSES == 3
    line = refusal(load, data, "MODEL.ROI_HEADS.NUM_CLASSES", 5)
    assert "set MODEL.ROI_HEADS.NUM_CLASSES 3" in line


def test_a_saved_config_needs_no_data(write, load, tmp_path):
    cfg = load({"my_train": write("train")})
    (tmp_path / "saved.yaml").write_text(cfg.dump())
    (tmp_path / "train.json").unlink()
    again = load_config(str(tmp_path / "saved.yaml"))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    assert MetadataCatalog.get("my_train").thing_classes == ["ant", "cow", "bee"]
    write("train", categories=CATEGORIES[:1])
    with pytest.raises(UserError, match="DATASETS.CLASSES is .* but my_train has .'bee'.: they"):
        load_config(str(tmp_path / "saved.yaml"))


OTHER = [{**c, "name": c["name"].upper()} for c in CATEGORIES]
FOREIGN = [{**BOX, "id": 1, "image_id": 1, "category_id": 5}]


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"annotations": []}, "train.json is empty: it has no annotations"),
        ({"images": []}, "train.json is empty: it has no images"),
        ({"categories": []}, "train.json is empty: it has no categories"),
        ({"categories": 3}, "its categories should be a list"),
        ({"categories": [{"id": "a", "name": "ant"}]}, "a number as its id"),
        ({"categories": [*CATEGORIES, CATEGORIES[0]]}, "2 categories have the id 9"),
        ({"categories": OTHER}, "my_val: its classes ('ant', 'cow', 'bee') are not those of"),
        ({"annotations": FOREIGN}, "its category_id 5 is of no class"),
    ],
)
def test_files_that_are_empty_or_wrong(write, load, changes, reason):
    line = refusal(load, {"my_train": write("train", **changes), "my_val": write("val")})
    assert reason in line and "my_train" in line


def test_a_test_set_may_have_no_annotations_but_not_none_of_them(write, load, tmp_path):
    data = {"my_train": write("train"), "my_val": write("val", annotations=[])}
    assert "my_val: " in refusal(load, data) and "it has no annotations" in refusal(load, data)
    content = json.loads((tmp_path / "val.json").read_text())
    del content["annotations"]
    (tmp_path / "val.json").write_text(json.dumps(content))
    check_run(load(data), False, False)


def test_a_path_in_the_home_folder(write, load, tmp_path, monkeypatch):
    write("train")
    monkeypatch.setenv("HOME", str(tmp_path))
    check_run(load({"my_train": ["~/train.json", "~/images"]}), False, False)


def test_paths_and_names_that_are_wrong(write, load, tmp_path):
    good = write("train")
    assert "my_train: none.json does not exist" in refusal(load, {"my_train": ["none.json", "x"]})
    line = refusal(load, {"my_train": [good[0], "none"]})
    assert line == "my_train: none does not exist"
    for value in (good[0], good[:1], [*good, 1]):
        line = refusal(load, {"my_train": value})
        assert "DATASETS.COCO.my_train is" in line and "[annotations.json, folder" in line
    line = refusal(load, {"coco_2017_train": good})
    assert line.startswith("DATASETS.COCO.coco_2017_train: Detectron2 has a data set of this name")
    for text in ("[{", "[]", ""):
        (tmp_path / "train.json").write_text(text)
        assert good[0] in refusal(load, {"my_train": good})
    assert "DATASETS.COCO" in refusal(load, {"my_train": good}, "DATASETS.COCO", "[1]")


def test_a_run_goes_on_with_data_that_were_moved(write, load, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model_final.pth").touch()
    (tmp_path / "run/config.yaml").write_text(load({"my_train": write("train")}).dump())
    moved = {"my_train": write("moved"), "my_val": write("val")}
    check_run(load(moved, "DATASETS.TEST", "()"), True, False)
    with pytest.raises(UserError, match="DATASETS.TEST"):
        check_run(load(moved), True, False)
    moved = {"my_train": write("moved", categories=OTHER)}
    with pytest.raises(UserError, match="DATASETS.CLASSES .'ANT', 'COW', 'BEE'. .was .'ant'"):
        check_run(load(moved), True, False)
