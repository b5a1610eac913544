"""Data sets against a config: what is refused, what is told, and what Detectron2 makes of it."""

from __future__ import annotations

import copy
import json
import logging
import re

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

from evonorm_d2 import add_evonorm_config
from evonorm_d2.data.check import check_data, find_faults
from evonorm_d2.loader import Mapper
from evonorm_runs.errors import UserError

WIDTH, HEIGHT = 40, 30
SQUARE = [2.0, 3, 12, 3, 12, 13, 2, 13]
NAMES = ["ant", "bee", "cow"]


def rle(height=HEIGHT, width=WIDTH):
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[3:13, 2:12] = 1
    encoded = mask_util.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def sound():
    """A data set of two images and four objects, in COCO's format; its ids are 10, 11, 12, 13."""
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2)]
    annotations = [
        {
            "id": 10 + k,
            "image_id": 1 + k // 2,
            "category_id": 5 + k % 3,
            "bbox": [2.0, 3, 10, 10],
            "area": 100,
            "iscrowd": 0,
            "segmentation": [SQUARE],
            "keypoints": [4, 5, 2, 6, 7, 2],
            "num_keypoints": 2,
        }
        for k in range(4)
    ]
    categories = [{"id": 5 + i, "name": name} for i, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def cfg():
    cfg = add_evonorm_config(get_cfg())
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 2
    cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


@pytest.fixture
def register(tmp_path):
    """register(content, name): such a data set on the disk and in Detectron2's catalogs."""
    made = []

    def make(content, name="insects"):
        for i in (1, 2):
            Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register_coco_instances(name, {}, str(tmp_path / f"{name}.json"), str(tmp_path))
        made.append(name)
        return name

    yield make
    for name in made:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def findings(cfg, train=("insects",), test=(), **options):
    found = list(find_faults(cfg, train, test, **options))
    assert not any("\n" in finding.line for finding in found)
    return found


@pytest.mark.parametrize("train, test", [(["insects"], []), ([], ["insects"])])
def test_a_sound_data_set(train, test, cfg, register):
    register(sound())
    MetadataCatalog.get("insects").set(keypoint_names=["head", "tail"], keypoint_flip_map=[])
    assert findings(cfg, train, test) == []
    cfg.MODEL.KEYPOINT_ON = True
    assert findings(cfg, train, test) == []


def change(**values):
    """Another value for a key of annotation 11; ... takes the key away."""

    def apply(content):
        annotation = content["annotations"][1]
        annotation.update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del annotation[key]

    return apply


def of_images(**values):
    return lambda content: content["images"][1].update(values)


KEYPOINTS = ("MODEL.KEYPOINT_ON", True)
REFUSED = [
    # what is changed, settings, what the line holds
    (
        change(),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 2),
        "3 classes ('ant', 'bee', 'cow'), but MODEL.ROI",
    ),
    (change(), ("MODEL.ROI_HEADS.NUM_CLASSES", 80), "set MODEL.ROI_HEADS.NUM_CLASSES 3"),
    (
        change(),
        ("MODEL.META_ARCHITECTURE", "RetinaNet"),
        "set MODEL.RETINANET.NUM_CLASSES 3",
    ),
    (change(segmentation=...), (), "it has no segmentation, but MODEL.MASK_ON is True"),
    (change(segmentation=[]), (), "set MODEL.MASK_ON False"),
    (change(segmentation=rle()), (), "set INPUT.MASK_FORMAT bitmask"),
    (change(segmentation=rle(8, 9)), ("INPUT.MASK_FORMAT", "bitmask"), "height and width [8, 9]"),
    *(
        (
            change(segmentation={"size": [HEIGHT, WIDTH], **counts}),
            ("INPUT.MASK_FORMAT", "bitmask"),
            "the counts of its RLE do not add up",
        )
        for counts in (
            {},
            {"counts": ""},
            {"counts": "~~~~~"},
            {"counts": "garbage!"},
            {"counts": rle()["counts"][:-1]},
            {"counts": 3},
            {"counts": [5, 6]},
            {"counts": [-1, WIDTH * HEIGHT + 1]},
        )
    ),
    (change(segmentation=[[float("nan")] * 6]), (), "something else than finite numbers"),
    (change(segmentation=[["a"] * 6]), (), "something else than finite numbers"),
    (change(bbox=...), (), "its bbox is None, but should be four finite numbers"),
    (change(bbox=[1, 2, 3]), (), "its bbox is [1, 2, 3], but should be four"),
    (change(bbox=[1, 2, 3, 4, 5]), (), "should be four finite numbers"),
    (change(bbox=[1, 2, 3, float("nan")]), (), "[1, 2, 3, nan], but should be four finite"),
    (change(bbox=[1, 2, float("inf"), 3]), (), "should be four finite numbers"),
    (change(bbox=["1", "2", "3", "4"]), (), "should be four finite numbers"),
    (change(bbox=[1, 2, 3, None]), (), "should be four finite numbers"),
    (change(bbox={"x": 1}), (), "should be four finite numbers"),
    (change(bbox=[20, 20, -10, 5]), (), "should not be negative"),
    (change(bbox=[100, 2, 3, 4]), (), "outside an image of width 40 and height 30"),
    (change(bbox=[-9, 2, 3, 4]), (), "outside an image"),
    (change(category_id=9), (), "its category_id 9 is of no class"),
    (change(category_id=...), (), "its category_id None is of no class"),
    (change(category_id=[5]), (), "its category_id [5] is of no class"),
    (change(image_id=...), (), "annotation 11: no image has its image_id None"),
    (change(id=...), (), "it has no id that is a number"),
    (change(id=[11]), (), "it has no id that is a number"),
    (change(ignore=1), (), "it is to be ignored"),
    (change(iscrowd="0"), (), "its iscrowd is '0', but should be 0 or 1"),
    (change(iscrowd=None), (), "its iscrowd is None"),
    (change(segmentation=3), (), "its segmentation is 3, but should be a list of polygons"),
    (change(segmentation=SQUARE), (), "should be a list of polygons or RLE"),
    (change(segmentation="abc"), (), "its segmentation is 'abc'"),
    (change(segmentation=[[[1, 2]] * 6]), (), "something else than finite numbers"),
    (change(id=10), (), "2 annotations have the id 10"),
    (of_images(id=1), (), "2 images have the id 1"),
    (of_images(width=41), (), "2.png: it is 40 pixels wide and 30 high"),
    (of_images(file_name="3.png"), (), "3.png"),
    (of_images(file_name="insects.json"), (), "insects.json: cannot identify image file"),
    (change(), KEYPOINTS, "its metadata lack keypoint_names"),
    (
        change(keypoints=...),
        KEYPOINTS,
        "annotation 11 of PATH/1.png: it has 0 numbers for keypoints",
    ),
    (change(keypoints=[1, 2, 3]), KEYPOINTS, "it has 3 numbers for keypoints, but needs 6"),
    (
        lambda content: [a.pop("keypoints") for a in content["annotations"]],
        KEYPOINTS,
        "no annotation has keypoints: set MODEL.KEYPOINT_ON False",
    ),
]


@pytest.mark.parametrize("damage, settings, line", REFUSED)
def test_what_is_refused(damage, settings, line, cfg, register, tmp_path):
    content = sound()
    damage(content)
    name = register(content)
    cfg.merge_from_list(list(settings))
    found = [finding for finding in findings(cfg) if finding.refused]
    assert [x for x in found if line.replace("PATH", str(tmp_path)) in x.line], found
    assert all(finding.line.startswith(f"{name}: ") for finding in found)
    if ("its " in line or "counts" in line) and "metadata" not in line:
        where = rf"{name}: annotation (11|None|\[11\])( of {tmp_path}/1.png)?: "
        assert re.match(where, found[0].line)
    with pytest.raises(UserError, match=re.escape(found[0].line)):
        check_data(cfg, [name], [])


@pytest.mark.parametrize("damage, settings, line", [x for x in REFUSED if "set MODEL" in x[2]])
def test_the_key_that_a_line_names_mends_it(damage, settings, line, cfg, register):
    content = sound()
    damage(content)
    register(content)
    cfg.merge_from_list(list(settings))
    key, value = re.search(r"set (\S+) (\w+)", line).groups()
    cfg.merge_from_list([key, value])
    assert findings(cfg) == []


@pytest.mark.parametrize("key", ["area", "iscrowd"])
def test_what_cocos_evaluation_needs(key, cfg, register):
    content = sound()
    change(**{key: ...})(content)
    register(content)
    assert findings(cfg) == []
    (found,) = findings(cfg, (), ["insects"])
    assert f"its {key} is None" in found.line or f"it has no {key}" in found.line


TOLD = [
    (change(bbox=[2, 3, 0, 5]), "without an area"),
    (change(bbox=[2, 3, 50, 5]), "it is clipped"),
    (change(segmentation=[[1, 2, 3, 4]]), "Detectron2 leaves it out"),
    (change(segmentation=[SQUARE, [1, 2, 3, 4]]), "Detectron2 leaves it out"),
    (change(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "Detectron2 leaves it out"),
    (change(image_id=77), "no image has its image_id 77"),
]


@pytest.mark.parametrize("damage, line", TOLD)
def test_what_detectron2_copes_with_is_told(damage, line, cfg, register, caplog):
    content = sound()
    damage(content)
    name = register(content)
    (found,) = findings(cfg)
    assert line in found.line and "annotation 11" in found.line and not found.refused
    with caplog.at_level(logging.WARNING):
        check_data(cfg, [name], [])
    assert found.line in caplog.text
    mapper = Mapper(cfg, True)
    assert sum(len(mapper(record)["instances"]) for record in DatasetCatalog.get(name)) in (3, 4)


def test_as_in_coco(cfg, register):
    """A crowd is RLE, boxes reach out by a fraction of a pixel: nothing to say."""
    content = sound()
    counts = [10, 20, WIDTH * HEIGHT - 30]
    crowd = {"iscrowd": 1, "segmentation": {"counts": counts, "size": [HEIGHT, WIDTH]}}
    change(**crowd, bbox=[0, 10, 1, 20])(content)
    content["annotations"][2]["bbox"] = [2, 3, WIDTH - 1.5, 10]
    name = register(content)
    assert findings(cfg, [name], [name]) == []
    mapper = Mapper(cfg, True)
    assert sum(len(mapper(record)["instances"]) for record in DatasetCatalog.get(name)) == 3


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_masks_of_any_shape_are_sound(share, cfg, register):
    """As pycocotools writes them, compressed or not."""
    random = np.random.default_rng(0)
    content = sound()
    for annotation in content["annotations"]:
        mask = (random.random((HEIGHT, WIDTH)) < share).astype(np.uint8)
        segmentation = mask_util.encode(np.asfortranarray(mask))
        segmentation["counts"] = segmentation["counts"].decode()
        annotation["segmentation"] = segmentation
    flat = mask.flatten(order="F")
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]
    runs = [0] * int(flat[0]) + np.diff(ends).tolist()
    annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": runs}
    register(content)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    assert findings(cfg) == []


def test_faults_of_a_kind_are_one_line_with_their_number(cfg, register):
    content = sound()
    for annotation in content["annotations"]:
        annotation["segmentation"] = rle()
    register(content)
    assert len(findings(cfg)) == 4
    with pytest.raises(UserError, match=r"annotation 10 .*and 3 more like it.*check_data.py"):
        check_data(cfg, ["insects"], [])


def test_names_of_the_classes_of_several_data_sets(cfg, register):
    other = sound()
    other["categories"][1]["name"] = "cow\x1b[2J"
    register(sound())
    register(other, "others")
    (found,) = findings(cfg, ["insects"], ["others"])
    assert (
        "others: its classes ('ant', 'cow\\x1b[2J', 'cow') are not those of insects" in found.line
    )


def test_the_papers_heads_may_have_more_classes(cfg, register):
    register(sound())
    cfg.merge_from_list(["MODEL.ROI_HEADS.NAME", "build_paper_roi_heads"])
    cfg.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", 90])
    assert findings(cfg) == []
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    assert len(findings(cfg)) == 1


def test_all_images_or_a_sample(cfg, register, tmp_path):
    content = sound()
    for i in range(3, 60):
        content["images"].append({**content["images"][0], "id": i, "file_name": f"{i}.png"})
    register(content)
    for i in range(3, 60):
        Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / f"{i}.png")
    assert findings(cfg) == []
    (tmp_path / "2.png").write_bytes(b"no image")  # not in the sample, as it is the second of 59
    assert findings(cfg) == []
    (found,) = findings(cfg, every_image=True)
    assert str(tmp_path / "2.png") in found.line
    for i in range(1, 60):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    assert 10 < len(findings(cfg)) < 20


def test_rotation_by_exif_is_detectron2s(cfg, register, tmp_path):
    register(sound())
    image, exif = Image.new("RGB", (HEIGHT, WIDTH)), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "2.png", exif=exif)
    assert findings(cfg) == []


class TestOfTheCatalog:
    """A data set that a user's own function loads."""

    @pytest.fixture
    def own(self, cfg, register, tmp_path):
        register(sound())
        coco = DatasetCatalog.get("insects")
        registered = []

        def make(damage):
            records = copy.deepcopy(coco)
            damage(records[0]["annotations"][1])
            DatasetCatalog.register("own", lambda: records)
            MetadataCatalog.get("own").set(thing_classes=NAMES)
            registered.append("own")
            return records

        yield make
        for name in registered:
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name)

    def test_sound(self, cfg, own):
        own(lambda annotation: None)
        assert findings(cfg, ["own"]) == []

    def test_boxes_of_corners(self, cfg, own):
        own(lambda a: a.update(bbox=[30, 20, 39, 29], bbox_mode=BoxMode.XYXY_ABS))
        assert findings(cfg, ["own"]) == []

    @pytest.mark.parametrize(
        "damage, line",
        [
            (lambda a: a.update(bbox=[30, 20, 20, 29], bbox_mode=BoxMode.XYXY_ABS), "negative"),
            (lambda a: a.update(segmentation=[[1, 2, 3, 4]]), "three points or more"),
            (lambda a: a.update(segmentation=rle()), "INPUT.MASK_FORMAT bitmask"),
            (lambda a: a.update(category_id=3), "category_id 3 is of no class"),
        ],
    )
    def test_refused(self, cfg, own, damage, line, tmp_path):
        own(damage)
        (found,) = findings(cfg, ["own"])
        assert found.refused and line in found.line
        assert f"own: annotation 1 of {tmp_path}/1.png: " in found.line

    def test_a_loader_that_takes_some_of_the_classes(self, cfg, register, tmp_path):
        """It may name COCO's json for the evaluation all the same."""
        register(sound())
        records = DatasetCatalog.get("insects")
        for record in records:
            record["annotations"] = [a for a in record["annotations"] if a["category_id"] == 0]
        DatasetCatalog.register("ants", lambda: records)
        MetadataCatalog.get("ants").set(
            thing_classes=["ant"], json_file=str(tmp_path / "insects.json"), evaluator_type="coco"
        )
        try:
            cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
            assert findings(cfg, ["ants"]) == []
        finally:
            DatasetCatalog.pop("ants")
            MetadataCatalog.pop("ants")


@pytest.mark.parametrize(
    "content, line",
    [
        ("{", "broken JSON"),
        ("[]", "lacks categories and images"),
        ("3", "lacks categories and images"),
        ('{"images": [{"id": 1}], "categories": []}', "image 1: it has no file_name"),
        ('{"images": [{"id": 1, "file_name": "1.png"}], "categories": []}', "it has no width"),
        ('{"images": [{"id": 1, "file_name": 3}], "categories": []}', "its file_name is 3"),
        ('{"images": [{"id": []}], "categories": []}', "its id is []"),
        (
            '{"images": [{"id": 1, "file_name": "1.png", "width": "40"}], "categories": []}',
            "'1.png': its width is '40'",
        ),
        (
            '{"images": [{"id": 1, "file_name": "1.png", "width": 0}], "categories": []}',
            "'1.png': its width is 0",
        ),
        ('{"images": [1], "categories": []}', "its images should be a list of dictionaries"),
        ('{"images": {}, "categories": []}', "its images should be a list"),
        ('{"images": [], "categories": null}', "its categories should be a list"),
        ('{"images": [], "categories": [{"id": 1}]}', "it needs a name"),
        ('{"images": [], "categories": [{"id": "a", "name": "a"}]}', "a number as its id"),
        (
            '{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "2 categories have the id 1",
        ),
        ('{"images": [], "categories": [], "annotations": [1]}', "its annotations should be"),
        ('{"images": [], "categories": [], "annotations": null}', "its annotations should be"),
        ("[" * 100000, "insects.json"),
    ],
)
def test_broken_json(content, line, cfg, register, tmp_path):
    register(sound())
    (tmp_path / "insects.json").write_text(content)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 0
    with pytest.raises(UserError) as error:
        findings(cfg)
    assert line in str(error.value) and str(error.value).count("\n") == 0


class TestWhileTraining:
    """What the checks let through is named by the mapper."""

    @pytest.fixture
    def record(self, register):
        register(sound())
        return DatasetCatalog.get("insects")[0]

    @pytest.mark.parametrize(
        "damage",
        [
            {"bbox": None},
            {"bbox": [1, 2, 3]},
            {"bbox_mode": 77},
            {"category_id": "ant"},
            {"segmentation": 3},
            {"segmentation": rle(8, 9)},
            {"segmentation": [["a"] * 6]},
            {"keypoints": [1, 2]},
        ],
    )
    def test_an_annotation(self, damage, cfg, record, tmp_path):
        cfg.MODEL.KEYPOINT_ON = True
        cfg.DATASETS.TRAIN = ("insects",)
        MetadataCatalog.get("insects").set(keypoint_names=["a", "b"], keypoint_flip_map=[])
        mapper = Mapper(cfg, True)
        assert len(mapper(record)["instances"]) == 2
        record["annotations"][1].update(damage)
        with pytest.raises(UserError, match=f"^{tmp_path}/1.png: annotation 2 of its 2, ") as error:
            mapper(record)
        assert "\n" not in str(error.value)

    def test_an_image(self, cfg, record, tmp_path):
        mapper = Mapper(cfg, True)
        record["width"] = 77
        with pytest.raises(UserError, match=f"^{tmp_path}/1.png: Mismatched image shape"):
            mapper(record)
        record["width"] = WIDTH
        del record["annotations"][1]["segmentation"]
        with pytest.raises(UserError, match=f"^{tmp_path}/1.png: KeyError: segmentation"):
            mapper(record)


def test_a_json_that_cannot_be_fetched(cfg):
    register_coco_instances("far", {}, "http://localhost:1/a.json", "http://localhost:1/")
    try:
        with pytest.raises(UserError, match="^http://localhost:1/a.json: .*urlopen error"):
            findings(cfg, ["far"])
    finally:
        DatasetCatalog.pop("far")
        MetadataCatalog.pop("far")
