"""tools/predict.py with an untrained model, whose predictions are what the model gives."""

from __future__ import annotations

import importlib
import json
import logging
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image
from pycocotools.coco import COCO

from evonorm_classifier.config import load_config as load_classifier
from evonorm_classifier.data import DigitsSet, open_data
from evonorm_classifier.run import ClassifierRun
from evonorm_d2.checkpoint import Checkpointer
from evonorm_d2.data.own import _ours
from evonorm_d2.loader import build_test_loader
from evonorm_d2.predict import image_ids
from evonorm_d2.run_config import load_config
from evonorm_runs.images.digits import make_digits
from evonorm_runs.images.garments import load_garments

CLASSIFICATION = Path(__file__).parents[2] / "configs" / "classification"


@pytest.fixture(scope="module")
def own(digits_root, tmp_path_factory, tiny_run):
    """The digits as data of one's own, whose categories have other ids: a run on them."""
    folder = tmp_path_factory.mktemp("own")
    content = json.loads((digits_root / "digits/annotations/instances_val.json").read_text())
    for row in content["categories"]:
        row["id"] += 100
    for row in content["annotations"]:
        row["category_id"] += 100
    (folder / "val.json").write_text(json.dumps(content))
    base, values = tiny_run("EvoNormS0")
    data = f"{{own_val: [{folder / 'val.json'}, {digits_root / 'digits/val'}]}}"
    config = folder / "own.yaml"
    config.write_text(f"_BASE_: {base}\nDATASETS: {{COCO: {data}, TRAIN: [], TEST: [own_val]}}\n")
    cfg = load_config(str(config), values)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(cfg.dump())
    Checkpointer(model, str(run)).save("model_final", iteration=0)
    return run, cfg, model


@pytest.fixture
def images(digits_root):
    return digits_root / "digits/val"


def test_pictures_and_results_of_a_folder(own, call, images, tmp_path):
    run, cfg, model = own
    status, out, _ = call(run, images, "-o", tmp_path / "out", "--threshold", 0, "--device", "cpu")
    assert status == 0 and str(tmp_path / "out") in out
    rows = json.loads((tmp_path / "out/results.json").read_text())
    expected = []
    for batch in build_test_loader(cfg, "own_val"):  # as the evaluation reads the images
        with torch.no_grad():
            (found,) = model(batch)
        found = found["instances"]
        boxes = found.pred_boxes.tensor.numpy()
        boxes[:, 2:] -= boxes[:, :2]
        expected += zip(
            [batch[0]["image_id"]] * len(found), found.scores.tolist(), boxes, found.pred_classes
        )
    assert len(rows) == len(expected) == 15
    for row, (image_id, score, box, index) in zip(rows, expected):
        assert row["image_id"] == image_id and row["score"] == pytest.approx(score, rel=1e-5)
        np.testing.assert_allclose(row["bbox"], box, rtol=1e-4, atol=1e-3)
        assert row["category_id"] == index + 101 and row["file_name"] == f"{image_id:012d}.png"
    coco = COCO(run.parent / "val.json")
    assert len(coco.loadRes(rows).anns) == 15  # pycocotools takes them
    for path in sorted(images.iterdir()):
        drawn = np.asarray(Image.open(tmp_path / "out" / path.name).convert("RGB"))
        plain = Image.open(path).resize((400, 400), Image.Resampling.NEAREST)
        assert drawn.shape == (400, 400, 3)
        assert 0.01 < (np.abs(drawn - np.asarray(plain).astype(int)).max(-1) > 40).mean() < 0.9


def test_files_a_checkpoint_and_a_broken_image(own, call, images, tmp_path):
    first = next(images.iterdir())
    shutil.copy(first, tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    arguments = (own[0] / "model_final.pth", tmp_path / "a.png", tmp_path / "b.jpg", "-o", out)
    status, printed, err = call(*arguments, "--threshold", 1)
    assert status == 2 and "0 objects in 1 images" in printed
    assert f"predict.py: {tmp_path / 'b.jpg'}: cannot identify" in err
    assert json.loads((out / "results.json").read_text()) == []
    assert {p.name for p in out.iterdir()} == {"a.png", "results.json"}
    assert call(own[0], tmp_path / "b.jpg", "-o", tmp_path / "none")[0] == 2
    assert not (tmp_path / "none/results.json").exists()  # as no image could be read
    (out / "a.png").write_text("mine")
    status, _, err = call(*arguments[:2], "-o", out)
    assert status == 2 and "results.json exists: name another folder" in err
    assert (out / "a.png").read_text() == "mine"
    assert call(*arguments[:2], "-o", out, "--overwrite", "--threshold", 1)[0] == 0
    assert (out / "a.png").stat().st_size > 100


def test_without_its_data_a_run_knows_its_classes(own, call, images, tmp_path):
    shutil.copytree(own[0], tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace(str(own[0].parent / "val.json"), "gone.json"))
    path = sorted(images.iterdir())[0]
    assert call(tmp_path / "run", path, "--threshold", 0)[0] == 0
    rows = json.loads((tmp_path / "run/predictions/results.json").read_text())
    assert len(rows) == 5 and all(1 <= row["category_id"] <= 10 for row in rows)


def test_what_is_refused(own, call, images, tmp_path):
    run = own[0]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.yaml").write_text((run / "config.yaml").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.yaml").write_text("DATA: {NAME: digits}")
    cases = [
        ((tmp_path, images), "not a run of train_net.py or train_classifier.py, which has a c"),
        ((tmp_path / "empty", images), "it has no checkpoint yet"),
        ((tmp_path / "other", images), "a run of another tool than train_net.py"),
        ((run, tmp_path / "none.png"), "no such image or folder"),
        ((run, tmp_path / "empty"), "no image (.png"),
        ((run / "none.pth", images), "there is no such checkpoint"),
        ((run, images, "--device", "nothing"), "--device: Expected one of cpu"),
    ]
    twice = tmp_path / "more"
    twice.mkdir()
    shutil.copy(next(images.iterdir()), twice)
    cases.append(((run, images, twice), "would both become"))
    for arguments, reason in cases:
        status, out, err = call(*arguments, "-o", tmp_path / "out")
        assert status == 2 and not out and reason in err.splitlines()[-1], (arguments, err)
    assert call(run, images, "--threshold", 2)[0] == 2
    assert not (tmp_path / "out").exists()


def squares(folder, name, numbers):
    """Images of a square or a frame each, in COCO's format."""
    random = np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 3, "name": "square"}, {"id": 8, "name": "frame"}]
    for i in numbers:
        x, y, side = (int(v) for v in random.integers((4, 4, 20), (30, 30, 30)))
        pixels = random.integers(0, 60, (64, 64, 3)).astype(np.uint8)
        pixels[y : y + side, x : x + side] = 200
        if i % 2:
            pixels[y + 5 : y + side - 5, x + 5 : x + side - 5] = 0
        Image.fromarray(pixels).save(folder / f"images/{i}.png")
        content["images"].append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        corners = [x, y, x + side, y, x + side, y + side, x, y + side]
        box = {"bbox": [x, y, side, side], "area": side * side, "segmentation": [corners]}
        ids = {"id": i, "image_id": i, "category_id": 8 if i % 2 else 3, "iscrowd": 0}
        content["annotations"].append({**box, **ids})
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_the_tutorials_way_from_twenty_images_to_predictions(call, monkeypatch, tmp_path, tiny_run):
    """The page's config and commands, with the size and the schedule of a test."""
    root = Path(__file__).parents[2]
    page = (root / "docs/tutorial-detectron2.md").read_text()
    page = page[page.index("### Your own data") :]
    (tmp_path / "configs").symlink_to(root / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", True)  # which the tool sets
    (tmp_path / "mine.yaml").write_text(re.search("```yaml\n(.*?)```", page, re.S)[1])
    (tmp_path / "my_data/images").mkdir(parents=True)
    squares(tmp_path / "my_data", "train", range(1, 21))
    squares(tmp_path / "my_data", "val", range(21, 25))
    small = (*tiny_run("EvoNormS0")[1], "SOLVER.MAX_ITER", 4)
    for line in re.search("```sh\n(.*?)```", page, re.S)[1].splitlines():
        name, *arguments = line.removeprefix("python tools/").split()
        extra = ("--threshold", 0) if name == "predict.py" else small
        tool = importlib.import_module(name.removesuffix(".py"))
        status, out, err = call(*arguments, *extra, tool=tool)
        assert status == 0, err
    rows = json.loads(Path("predicted/results.json").read_text())
    assert rows and {row["category_id"] for row in rows} <= {3, 8}
    assert {row["image_id"] for row in rows} <= set(range(1, 25))
    assert len(list(Path("predicted").glob("*.png"))) == 24
    for name in ("my_train", "my_val"):
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
        _ours.discard(name)


def test_a_video_gives_a_video_and_the_objects_of_each_frame(own, call, images, tmp_path):
    run, _, model = own
    source, frames = tmp_path / "clip.avi", [cv2.imread(str(p)) for p in sorted(images.iterdir())]
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (64, 64))
    for frame in frames:
        writer.write(frame)
    writer.release()
    status, out, err = call(run, source, "-o", tmp_path / "out", "--threshold", 0)
    assert status == 0 and "clip.mp4: 15 objects in 3 frames" in out, err
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"clip.mp4", "clip.mp4.json"}
    rows = json.loads((tmp_path / "out/clip.mp4.json").read_text())
    assert [row["image_id"] for row in rows] == [0] * 5 + [1] * 5 + [2] * 5
    read, drawn = cv2.VideoCapture(str(source)), cv2.VideoCapture(str(tmp_path / "out/clip.mp4"))
    assert drawn.get(cv2.CAP_PROP_FPS) == 5.0
    for i in range(3):
        plain, picture = read.read()[1], drawn.read()[1]
        assert picture.shape == (64, 64, 3)
        assert (np.abs(picture.astype(int) - plain).max(-1) > 40).mean() > 0.01
        with torch.no_grad():
            x = torch.as_tensor(plain.transpose(2, 0, 1).copy())
            (found,) = model([{"image": x, "height": 64, "width": 64}])
        scores = [row["score"] for row in rows if row["image_id"] == i]
        assert scores == pytest.approx(found["instances"].scores.tolist(), rel=1e-4)
    assert not drawn.read()[0]
    source.write_bytes(b"no video")
    status, _, err = call(run, source, "-o", tmp_path / "new")
    assert status == 2 and f"{source}: OpenCV can't read a frame" in err.splitlines()[-1]
    assert call(run, source, "-o", tmp_path / "out")[0] == 2  # clip.mp4 is there


def test_ids_are_those_of_the_names_if_all_are_numbers():
    assert image_ids(["000139", "000285"]) == [139, 285]
    assert image_ids(["1", "01"]) == image_ids(["a", "7"]) == [1, 2]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A run of one epoch on the digits, whose checkpoint is as after its end."""
    run = tmp_path_factory.mktemp("classifier") / "run"
    file = str(CLASSIFICATION / "digits.yaml")
    settings = "MODEL.WIDTH 0.5 SOLVER.EPOCHS 1 SOLVER.WARMUP_EPOCHS 0.0 DEVICE cpu"
    cfg = load_classifier(file, [*settings.split(), "OUTPUT_DIR", str(run)])
    trained = ClassifierRun(cfg, torch.device("cpu"), 1437, [f"digit {i}" for i in range(10)])
    run.mkdir()
    (run / "config.yaml").write_text(cfg.dump())
    trained.save()
    return run, cfg, trained.model.eval()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Three of the digits as files, and as the evaluation gets them: (3, 3, 32, 32)."""
    folder = tmp_path_factory.mktemp("images")
    images, labels = make_digits("val", 32)
    for i in range(3):
        pixels = images[i].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder, DigitsSet(images[:3], labels[:3]).images


class TestClassifiers:
    def test_classes_are_those_of_the_evaluation(self, classifier, digits, call, tmp_path):
        (run, _, model), (folder, images) = classifier, digits
        with torch.no_grad():
            expected = model(images).softmax(1)
        arguments = (run, folder, "-o", tmp_path / "out", "--device", "cpu")
        status, out, _ = call(*arguments, "--top", 3)
        assert status == 0 and out.splitlines()[-1].endswith("classes of 3 images (results.json)")
        rows = json.loads((tmp_path / "out/results.json").read_text())
        for i, (row, line) in enumerate(zip(rows, out.splitlines())):
            assert row["file_name"] == str(folder / f"{i}.png") and line.startswith(
                row["file_name"]
            )
            order = expected[i].argsort(descending=True)[:3].tolist()
            assert [c["class"] for c in row["classes"]] == [f"digit {c}" for c in order]
            found = [c["probability"] for c in row["classes"]]
            assert found == pytest.approx(expected[i][order].tolist(), rel=1e-4)
            assert f": digit {order[0]} {found[0]:.4f}, digit {order[1]}" in line

    def test_a_broken_image_and_files_that_are_there(self, classifier, digits, call, tmp_path):
        (tmp_path / "b.jpg").write_bytes(b"no image")
        images = digits[0] / "0.png", tmp_path / "b.jpg"
        checkpoint = classifier[0] / "checkpoint.pth"
        status, _, err = call(checkpoint, *images, "-o", tmp_path / "out")
        assert status == 2 and f"predict.py: {tmp_path / 'b.jpg'}: cannot identify" in err
        (row,) = json.loads((tmp_path / "out/results.json").read_text())
        assert len(row["classes"]) == 5
        assert call(checkpoint, images[1], "-o", tmp_path / "none")[0] == 2
        assert not (tmp_path / "none").exists()
        status, _, err = call(checkpoint, *images, "-o", tmp_path / "out")
        assert status == 2 and "results.json exists: name another folder" in err

    def test_what_is_refused(self, classifier, own, digits, call, tmp_path):
        (tmp_path / "empty").mkdir()
        shutil.copy(classifier[0] / "config.yaml", tmp_path / "empty")
        cases = [
            ((classifier[0], digits[0], "--threshold", 0.5), "--threshold is for detectors"),
            ((own[0], digits[0], "--top", 5), "--top is for classifiers"),
            ((classifier[0], tmp_path / "none.png"), "no such image or folder"),
            ((tmp_path / "empty", digits[0]), "checkpoint.pth"),
            ((classifier[0], digits[0], "--device", "nothing"), "--device: Expected one of cpu"),
            ((classifier[0], digits[0], "--top", 0), "--top is 0, but should be at least 1"),
        ]
        for arguments, reason in cases:
            status, out, err = call(*arguments, "-o", tmp_path / "out")
            assert status == 2 and not out and reason in err.splitlines()[-1], (arguments, err)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name, tolerance", [("garments", 1e-6), ("folder", 0.0)])
    def test_images_are_cut_as_in_the_evaluation(self, classifier, tmp_path, name, tolerance):
        values = ["DATA.NAME", name, "DATA.NUM_WORKERS", "0"]
        values += ["DATA.ROOT", str(tmp_path)] if name == "folder" else []
        cfg = load_classifier(str(CLASSIFICATION / "digits.yaml"), ["DEVICE", "cpu", *values])
        images, _ = load_garments("val")
        picture = Image.fromarray(images[0, 0].numpy()).convert("RGB")
        for split in ("train", "val"):
            (tmp_path / split / "a").mkdir(parents=True)
            picture.save(tmp_path / split / "a/0.png")
        _, val_set = open_data(cfg)
        ((expected, _),) = val_set.batches([[0]], 0)
        ours = val_set.prepare(cfg)(picture)
        torch.testing.assert_close(ours, expected[0], rtol=0, atol=tolerance)
