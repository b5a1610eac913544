"""tools/pack_images.py: what it packs is the folder, pixel for pixel, or there is no file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from evonorm_gan.config import get_cfg
from evonorm_gan.data import open_dataset


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pets"
    random = np.random.default_rng(0)
    names = ["cat/1.png", "cat/1.jpg", "cat/a/2.png", "dog ü/3.png", "dog ü/10.png"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (*random.integers(20, 60, 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    return root


def opened(root):
    cfg = get_cfg()
    cfg.DATA.ROOT, cfg.MODEL.RESOLUTION, cfg.MODEL.NUM_CLASSES = str(root), 32, 2
    return open_dataset(cfg)


@pytest.mark.parametrize(("suffix", "workers"), [("h5", 0), ("zip", 0), ("zip", 1)])
def test_packed_equals_folder(folder, tmp_path, call, suffix, workers):
    output = tmp_path / "packed" / f"pets.{suffix}"
    status, out, err = call(folder, output, "--resolution", 32, "--workers", workers)
    assert status == 0 and out.startswith("2 classes (cat, dog ü), 5 images of 32x32, 2 to 3 per")
    assert out.endswith(f"DATA.ROOT {output}\n")
    packed, original = opened(output), opened(folder)
    assert packed.classes == original.classes == ["cat", "dog ü"]
    assert torch.equal(packed.labels, original.labels)
    for (image, label), (expected, expected_label) in zip(packed, original):
        assert torch.equal(image, expected) and label == expected_label
    assert list(output.parent.iterdir()) == [output]


def test_the_same_folder_gives_the_same_zip(folder, tmp_path, call):
    for name in ("1.zip", "2.zip"):
        call(folder, tmp_path / name, "--resolution", 32, "--workers", 0)
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_nothing_is_overwritten(folder, tmp_path, call):
    output = tmp_path / "pets.h5"
    output.write_text("mine")
    status, out, err = call(folder, output, "--resolution", 32)
    assert status == 2 and output.read_text() == "mine"
    assert err == f"pack_images.py: {output} exists already: remove it or name another\n"


@pytest.mark.parametrize("suffix", ["h5", "zip"])
def test_a_corrupt_image_leaves_no_file(folder, tmp_path, call, suffix):
    (folder / "dog ü/3.png").write_bytes(b"x")
    output = tmp_path / f"pets.{suffix}"
    status, out, err = call(folder, output, "--resolution", 32, "--workers", 0)
    assert status == 2
    line = err.splitlines()[-1]
    assert line.startswith(f"pack_images.py: {folder}/dog ü/3.png: can't be decoded")
    assert line.endswith("remove it, or give --skip-corrupt")  # it has no DATA keys
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [folder]


def test_skip_corrupt(folder, tmp_path, call, caplog):
    (folder / "cat/1.png").write_bytes(b"x")
    output = tmp_path / "pets.zip"
    arguments = (folder, output, "--resolution", 32, "--workers", 0, "--skip-corrupt")
    assert call(*arguments)[0] == 0
    assert len(caplog.messages) == 1 and "cat/1.png" in caplog.messages[0]
    packed = opened(output)
    # Two cats are left of three, and one of them takes the place of the third.
    assert packed.labels.tolist() == [0, 0, 0, 1, 1]
    places = [i for i in (0, 2) if torch.equal(packed[1][0], packed[i][0])]
    assert len(places) == 1


def test_the_last_one_of_a_class_is_not_replaced_by_the_first_of_all(folder, tmp_path, call):
    (folder / "dog ü/3.png").write_bytes(b"x")
    output = tmp_path / "pets.zip"
    call(folder, output, "--resolution", 32, "--workers", 0, "--skip-corrupt")
    packed = opened(output)
    assert packed.labels.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(packed[4][0], packed[3][0])


def test_names_of_classes_obey_no_terminal(folder, tmp_path, call):
    (folder / "cat").rename(folder / "cat\x1b[31m\x07")
    answer = call(folder, tmp_path / "pets.zip", "--resolution", 32, "--workers", 0)
    assert answer[0] == 0 and "(cat\\x1b[31m\\x07, dog ü)" in answer[1]
    assert "\x1b" not in answer[1] + answer[2]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("nowhere", "a.h5", "--resolution", 32), "nowhere"),
        ((".", "a.tar", "--resolution", 32), "OUT should end in .h5 or .hdf5 or .zip, got a.tar"),
        ((".", "a.h5", "--resolution", 33), "invalid choice: 33"),
        ((".", "a.h5", "--resolution", 32, "--workers", -1), "--workers must be from 0 to 256"),
        ((".", "a.h5", "--resolution", 32, "--workers", 100_000), "to 256, got 100000"),
        ((".", "a.h5", "--resolution", 32), ". should hold a folder per class"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, call, arguments, line):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(*arguments)
    assert status == 2 and line in err.splitlines()[-1] and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
