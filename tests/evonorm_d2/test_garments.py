"""The garments data set, read back with pycocotools and Pillow, and made at its first use."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import sklearn.datasets
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO
from torch.nn import functional as F

from evonorm_d2.data import drawn, garments, register_garments, write_garments
from evonorm_d2.loader import check_names
from evonorm_runs.errors import UserError
from evonorm_runs.images.garments import CLASSES, load_garments

PARTS = {"train": 2000, "val": 200, "test": 300}
SOME = {"train": 60, "val": 30, "test": 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The first scenes of each part."""
    folder = tmp_path_factory.mktemp("datasets") / "garments"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(garments, "COUNTS", SOME)
        patch.setattr(garments, "DIGEST", "")
        assert write_garments(folder)
    return folder


@pytest.fixture(scope="module", params=PARTS)
def part(request):
    return request.param


@pytest.fixture(scope="module")
def coco(folder, part):
    return COCO(str(folder / "annotations" / f"instances_{part}.json"))


@pytest.fixture
def few(monkeypatch):
    """Fewer scenes, for which there is no digest."""
    monkeypatch.setattr(garments, "COUNTS", {"train": 3, "val": 2, "test": 1})
    monkeypatch.setattr(garments, "DIGEST", "")


@pytest.fixture
def unregistered():
    yield
    for part in PARTS:
        DatasetCatalog.pop(f"garments_{part}", None)
        MetadataCatalog.pop(f"garments_{part}", None)


def pixels(folder, part):
    return [np.asarray(Image.open(path)) for path in sorted((folder / part).iterdir())]


@pytest.mark.slow
def test_the_digest_is_that_of_the_files(tmp_path):
    """Of what is read back: so decoding loses nothing, and nothing else was written."""
    assert write_garments(tmp_path / "garments")
    found = hashlib.sha256()
    keys = ("category_id", "bbox", "area", "iscrowd", "segmentation", "garment", "full_area")
    for part, count in PARTS.items():
        coco = COCO(str(tmp_path / "garments" / "annotations" / f"instances_{part}.json"))
        images = pixels(tmp_path / "garments", part)
        assert len(images) == len(coco.imgs) == count
        for image, image_id in zip(images, coco.imgs):
            own = [{key: a[key] for key in keys} for a in coco.imgToAnns[image_id]]
            found.update(image.tobytes())
            found.update(json.dumps(own).encode())
    assert found.hexdigest() == garments.DIGEST


def test_masks_boxes_and_areas_agree(coco):
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation).astype(bool)
        assert mask.shape == (128, 128)
        ys, xs = np.nonzero(mask)
        assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert annotation["area"] == mask.sum() >= 0.5 * annotation["full_area"]
        assert annotation["iscrowd"] == 0


def test_later_garments_cover_earlier_ones(coco):
    covered = 0
    for image_id in coco.imgs:
        annotations = coco.imgToAnns[image_id]
        assert 1 <= len(annotations) <= garments.MOST
        masks = np.array([coco.annToMask(a) for a in annotations])
        assert masks.sum(0).max() == 1  # every pixel belongs to one garment at most
        assert annotations[-1]["area"] == annotations[-1]["full_area"]
        covered += sum(a["area"] < a["full_area"] for a in annotations)
    assert covered > 0.1 * len(coco.anns)


def test_classes_are_those_of_the_garments_and_all_scales_appear(coco, part):
    assert [category["name"] for category in coco.cats.values()] == list(CLASSES)
    labels = load_garments(part)[1].tolist()
    counts = np.zeros(10)
    for annotation in coco.anns.values():
        counts[annotation["category_id"] - 1] += 1
        assert annotation["category_id"] - 1 == labels[annotation["garment"]]
    assert counts.min() > 0
    lengths = [max(a["bbox"][2:]) for a in coco.anns.values()]
    assert min(lengths) < 26 and max(lengths) > 60


def test_what_is_annotated_is_pasted_there(monkeypatch):
    """On grey, with one white garment each: what differs from the background is the masks."""
    tiles = [np.full((142, 128, 3), 100, dtype=np.uint8)]
    monkeypatch.setattr(garments, "GRAIN", 0)
    monkeypatch.setattr(garments, "_colour", lambda rng, image: np.array([255, 0, 255]))
    white = np.zeros((1, 1, 28, 28), dtype=np.uint8)
    white[..., 4:20, 8:18] = 255
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image, items = garments.draw_scene(rng, tiles, white, np.array([7]))
        seen = image[..., 0].astype(int) != image[..., 1]
        masks = np.any([item.mask for item in items], axis=0)
        assert {item.label for item in items} == {7}
        # An edge is soft over a few pixels, the more the larger the garment is.
        assert not (masks & ~seen).any() and seen.sum() < 1.6 * masks.sum()


@pytest.mark.parametrize("size", [(40, 31), (28, 28), (24, 64), (128, 128)])
def test_resizing_is_bilinear(size):
    """As PyTorch's in float64, but for the two roundings."""
    image = np.random.default_rng(0).integers(0, 256, (28, 35, 3))
    batch = torch.from_numpy(image).double().permute(2, 0, 1)[None]
    expected = F.interpolate(batch, size, mode="bilinear", align_corners=False)[0]
    found = torch.from_numpy(garments.resize(image, *size)).permute(2, 0, 1)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1.0
    assert torch.equal(torch.from_numpy(garments.resize(image[..., 0], *size)), found[0])


def test_parts_share_no_region_of_a_photograph(monkeypatch):
    """The photographs replaced by one in which every pixel has its own number."""
    numbers = np.arange(427 * 640).reshape(427, 640)
    monkeypatch.setattr(sklearn.datasets, "load_sample_image", lambda name: numbers)
    regions = {
        part: {int(n) for tile in garments.photograph_tiles(part) for n in tile.flat}
        for part in PARTS
    }
    assert not regions["train"] & regions["val"]
    assert not regions["train"] & regions["test"]
    assert not regions["val"] & regions["test"]
    assert len(regions["val"]) == len(regions["test"]) == 3 * 128 * 142


def test_parts_share_no_garment():
    """Not in load_garments's parts: what is compared is the pixels."""
    found = [{x.numpy().tobytes() for x in load_garments(part)[0]} for part in PARTS]
    assert not found[0] & found[1] and not found[0] & found[2] and not found[1] & found[2]


def test_the_same_scenes_each_time(few, tmp_path):
    for name in ("a", "b"):
        assert write_garments(tmp_path / name)
    for part in PARTS:
        one, other = (pixels(tmp_path / name, part) for name in ("a", "b"))
        assert all(np.array_equal(x, y) for x, y in zip(one, other))
    assert not write_garments(tmp_path / "a")


def test_another_digest_is_refused_and_leaves_nothing(few, tmp_path, monkeypatch):
    monkeypatch.setattr(garments, "DIGEST", "00")
    with pytest.raises(
        UserError, match=r"garments came out with the digest \w{64}, not 00: install"
    ):
        write_garments(tmp_path / "garments")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_anything_else_is_refused(few, tmp_path, monkeypatch):
    assert write_garments(tmp_path / "garments")
    monkeypatch.setattr(garments, "DIGEST", "00")
    with pytest.raises(FileExistsError, match=r"is not the garments data set .*digest 00"):
        write_garments(tmp_path / "garments")


def test_made_at_first_use(few, tmp_path, unregistered):
    register_garments(tmp_path)
    assert not (tmp_path / "garments").exists()
    check_names(["garments_train"])  # which is what a run starts with
    assert len(DatasetCatalog.get("garments_train")) == 3
    assert len(DatasetCatalog.get("garments_test")) == 1
    assert MetadataCatalog.get("garments_val").thing_classes == list(CLASSES)
    assert (tmp_path / "garments").exists()


def test_two_that_make_it_at_once(few, tmp_path, monkeypatch):
    """The slower one finds it made by the time that it is done."""
    write_split = drawn._write_split

    def slow(folder, kind, split, scenes, digest):
        if split == "test" and not (tmp_path / "garments").exists():
            monkeypatch.setattr(drawn, "_write_split", write_split)
            assert write_garments(tmp_path / "garments")
        return write_split(folder, kind, split, scenes, digest)

    monkeypatch.setattr(drawn, "_write_split", slow)
    assert not write_garments(tmp_path / "garments")
    assert [path.name for path in tmp_path.iterdir()] == ["garments"]
