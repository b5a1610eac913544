"""Which of Detectron2's evaluators a data set gets, and test-time augmentation."""

from __future__ import annotations

import importlib.util
import json
import sys
import types

import numpy as np
import pytest
import torch
from detectron2 import evaluation
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.structures import Boxes, Instances

from evonorm_d2 import train as training
from evonorm_d2.check_run import check_run
from evonorm_d2.data import register_digits
from evonorm_d2.evaluators import build_evaluator
from evonorm_d2.run_config import load_config
from evonorm_d2.train import summary
from evonorm_runs.errors import UserError


@pytest.fixture
def config(tiny_run, tmp_path, digits_root):
    register_digits(digits_root)

    def make(*overrides):
        return load_config(*tiny_run("EvoNormS0", "OUTPUT_DIR", tmp_path / "run", *overrides))

    return make


@pytest.fixture
def register():
    """register(kind): the name of a data set of this type, which is empty."""
    names = []

    def make(kind, **metadata):
        names.append(f"of_type_{kind}")
        DatasetCatalog.register(names[-1], list)
        MetadataCatalog.get(names[-1]).set(evaluator_type=kind, thing_classes=["a"], **metadata)
        return names[-1]

    yield make
    for name in names:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize(
    "kind, expected, folder",
    [
        ("lvis", "LVISEvaluator", True),  # or a class derived from it
        ("cityscapes_instance", "CityscapesInstanceEvaluator", False),
        ("cityscapes_sem_seg", "CityscapesSemSegEvaluator", False),
    ],
)
def test_an_evaluator_for_each_type(
    config, register, monkeypatch, tmp_path, kind, expected, folder
):
    lvis = types.ModuleType("lvis")
    lvis.LVIS = lambda path: types.SimpleNamespace(get_ann_ids=list)
    monkeypatch.setitem(sys.modules, "lvis", lvis)
    (tmp_path / "x.json").write_text("{}")
    name = register(kind, json_file=str(tmp_path / "x.json"))
    (found,) = build_evaluator(config("DATASETS.TEST", f"('{name}',)"), name)._evaluators
    assert isinstance(found, getattr(evaluation, expected))
    assert not folder or found._output_dir == str(tmp_path / "run/inference")


def test_a_package_that_is_missing_and_a_type_of_no_evaluator(config, register, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for kind, package in (("lvis", "lvis"), ("cityscapes_instance", "cityscapesscripts")):
        cfg = config("DATASETS.TEST", f"('{register(kind)}',)")
        with pytest.raises(UserError, match=f"of type {kind}: `pip install {package}`"):
            check_run(cfg, False, True)
    with pytest.raises(UserError, match="DATASETS.TEST: .* is data of type other; supported are"):
        check_run(config("DATASETS.TEST", f"('{register('other')}',)"), False, False)


def test_lvis_figures(config, register, tmp_path):
    """All objects of one class are found, and none of the other."""
    pytest.importorskip("lvis")
    square = [[2, 2, 12, 2, 12, 12, 2, 12]]
    row = {"image_id": 1, "bbox": [2, 2, 10, 10], "area": 100, "segmentation": square}
    image = {"id": 1, "width": 64, "height": 64}
    categories = [{"id": i, "name": str(i), "frequency": "c", "image_count": 1} for i in (1, 2)]
    content = {
        "images": [{**image, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "annotations": [{**row, "id": i, "category_id": i} for i in (1, 2)],
        "categories": categories,
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    name = register("lvis", json_file=str(tmp_path / "x.json"))
    MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = {1: 0, 2: 1}
    evaluator = build_evaluator(config("DATASETS.TEST", f"('{name}',)"), name)
    found = Instances((64, 64))
    found.pred_boxes = Boxes(torch.tensor([[2.0, 2, 12, 12]]))
    found.scores, found.pred_classes = torch.ones(1), torch.zeros(1).long()
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(50.0)


def test_pascal_vocs_figures(config, tmp_path):
    """Of its two boxes of a class one is found, or both: AP by VOC 2007's eleven points."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    boxes = [(5, 5, 20, 20), (30, 30, 60, 50)]
    objects = "".join(
        "<object><name>cat</name><pose/><truncated>0</truncated><difficult>0</difficult><bndbox>"
        "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>".format(*b)
        for b in boxes
    )
    size = "<size><width>64</width><height>64</height></size>"
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (tmp_path / "ImageSets/Main/val.txt").write_text("a\n")
    register_pascal_voc("voc_of_two", str(tmp_path), "val", 2007, ["cat"])
    MetadataCatalog.get("voc_of_two").evaluator_type = "pascal_voc"
    try:
        evaluator = build_evaluator(config("DATASETS.TEST", "('voc_of_two',)"), "voc_of_two")
        for count, expected in ((2, 100.0), (1, 100 * 6 / 11)):  # recall to 0.5: 6 of 11 points
            found = Instances((64, 64))
            found.pred_boxes = Boxes(
                torch.tensor(boxes[:count]).float() - torch.tensor([1, 1, 0, 0])
            )
            found.scores, found.pred_classes = torch.ones(count), torch.zeros(count).long()
            evaluator.reset()
            evaluator.process([{"image_id": "a"}], [{"instances": found}])
            results = evaluator.evaluate()
            assert results["bbox"]["AP"] == pytest.approx(expected)
        assert summary(results) == "box AP 54.5"
    finally:
        DatasetCatalog.pop("voc_of_two")
        MetadataCatalog.pop("voc_of_two")


def test_augmentation_that_changes_nothing_predicts_the_same(config, tmp_path):
    sizes = ("TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.MAX_SIZE", 64, "TEST.AUG.FLIP", False)
    cfg = config("TEST.AUG.ENABLED", True, *sizes, "DATALOADER.NUM_WORKERS", 0)
    (tmp_path / "run").mkdir()
    torch.manual_seed(0)
    results = training.evaluate(cfg)
    assert results.keys() == {"bbox", "segm", "bbox_TTA", "segm_TTA"}
    line = json.loads((tmp_path / "run/metrics.json").read_text())
    assert {"bbox/AP", "bbox_TTA/AP", "segm_TTA/AP"} <= line.keys()
    plain, augmented = (
        json.loads((tmp_path / f"run/{folder}/coco_instances_results.json").read_text())
        for folder in ("inference", "inference_TTA")
    )
    assert len(plain) == len(augmented) == 15
    for rows in zip(plain, augmented):
        assert rows[0]["image_id"] == rows[1]["image_id"]
        np.testing.assert_allclose(rows[0]["score"], rows[1]["score"], rtol=1e-4)
        np.testing.assert_allclose(rows[0]["bbox"], rows[1]["bbox"], rtol=1e-3, atol=1e-2)


def test_augmentation_at_the_end_of_a_training(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        training.Trainer,
        "test",
        classmethod(
            lambda cls, cfg, model, evaluators=None: {"bbox": {"AP": 1.0 + bool(evaluators)}}
        ),
    )
    (tmp_path / "run").mkdir()
    keys = ("TEST.AUG.ENABLED", True, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1)
    assert training.train(config(*keys)) == {"bbox": {"AP": 1.0}, "bbox_TTA": {"AP": 2.0}}
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "bbox/AP" in line] == [0, 1]
    assert [line["iteration"] for line in lines if "bbox_TTA/AP" in line] == [1]
