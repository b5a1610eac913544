"""Opening data sets: what is read, what identifies it, and the line for each mistake."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import zipfile

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from evonorm_gan.config import EMBEDDED, get_cfg
from evonorm_gan.data import describe, open_dataset, train_batches
from evonorm_runs.errors import UserError, user_error_line
from evonorm_runs.images.decode import OpenFile
from evonorm_runs.images.garments import load_garments
from evonorm_runs.images.sets import resize


def config(name="", root="", classes=2, resolution=32, skip=False):
    cfg = get_cfg()
    cfg.DATA.NAME, cfg.DATA.SKIP_CORRUPT = name, skip
    cfg.DATA.ROOT = cfg.DATA.ROOT if name in EMBEDDED else str(root)
    cfg.MODEL.NUM_CLASSES, cfg.MODEL.RESOLUTION = classes, resolution
    return cfg


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two cats and three dogs of different sizes."""
    root = tmp_path / "pets"
    sizes = {
        "cat/1.png": (32, 32),
        "cat/2.jpg": (40, 60),
        "dog/a.png": (50, 33),
        "dog/b.bmp": (20, 20),
        "dog/a2/c.png": (32, 32),  # found after the files beside its folder
    }
    for seed, (name, size) in enumerate(sizes.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(seed, *size, 3)).save(root / name)
    return root


@pytest.fixture
def zipped(folder, tmp_path):
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in sorted(folder.rglob("*.*"), reverse=True):
            file.write(name, name.relative_to(folder))
    return path


@pytest.fixture
def hdf5(tmp_path):
    def write(name="pets.h5", **changed):
        content = {"images": noise(0, 5, 3, 32, 32), "labels": [0, 0, 1, 1, 1]}
        content.update({"classes": ["cat", "dog"], **changed})
        with h5py.File(tmp_path / name, "w") as file:
            for key, value in content.items():
                if value is not None:
                    file[key] = value
        return tmp_path / name

    return write


def assert_error(line, *args, **kwargs):
    """The one line that opening a data set ends with."""
    with pytest.raises(UserError, match=line) as caught:
        open_dataset(config(*args, **kwargs))
    assert "\n" not in str(caught.value)


def test_digits():
    ds = open_dataset(config("digits", classes=10))
    assert describe(ds) == (
        "10 classes (0, 1, 2, ...), 11496 images of 32x32, 1112 to 1168 per class"
    )
    image, label = ds[5]
    assert torch.equal(image, ds.images[5]) and label == int(ds.labels[5])
    val = open_dataset(config("digits", classes=10), "val")
    assert len(val) == 1440 and val.fingerprint() != ds.fingerprint()
    assert ds.fingerprint() == open_dataset(config("digits", classes=10)).fingerprint()
    with pytest.raises(UserError, match="splits train and val, not 'test'"):
        open_dataset(config("digits", classes=10), "test")


def test_garments():
    ds = open_dataset(config("garments", classes=10))
    assert describe(ds) == (
        "10 classes (t-shirt, trouser, pullover, ...), 8000 images of 32x32, 800 per class"
    )
    grey, labels = load_garments("val", 32)
    val = open_dataset(config("garments", classes=10), "val")
    assert all(torch.equal(val.images[:, i : i + 1], grey) for i in range(3))
    assert torch.equal(val.labels, labels)


def test_digits_fingerprint_knows_every_byte():
    ds, other = (open_dataset(config("digits", classes=10), "val") for _ in range(2))
    other.images[7, 1, 5, 6] ^= 1
    assert ds.fingerprint() != other.fingerprint()
    other = open_dataset(config("digits", classes=10), "val")
    other.labels[3] += 1
    assert ds.fingerprint() != other.fingerprint()


def test_folder(folder):
    ds = open_dataset(config(root=folder))
    assert ds.images is None and ds.classes == ["cat", "dog"]
    assert ds.labels.tolist() == [0, 0, 1, 1, 1] == [label for _, label in ds]
    assert describe(ds) == "2 classes (cat, dog), 5 images of 32x32, 2 to 3 per class"
    assert all(image.shape == (3, 32, 32) and image.dtype == torch.uint8 for image, _ in ds)
    # Of the right size already: the file's own pixels.
    assert torch.equal(ds[0][0], torch.from_numpy(noise(0, 32, 32, 3)).permute(2, 0, 1))
    assert torch.equal(ds[4][0], torch.from_numpy(noise(4, 32, 32, 3)).permute(2, 0, 1))


def test_zip_equals_folder(folder, zipped):
    ds, expected = (open_dataset(config(root=root)) for root in (zipped, folder))
    assert ds.classes == expected.classes and torch.equal(ds.labels, expected.labels)
    assert len(ds) == len(expected) == 5
    for (image, label), (other, other_label) in zip(ds, expected):
        assert torch.equal(image, other) and label == other_label


def test_hdf5(hdf5):
    ds = open_dataset(config(root=hdf5()))
    assert ds.classes == ["cat", "dog"] and ds.labels.tolist() == [0, 0, 1, 1, 1]
    for i, image in enumerate(noise(0, 5, 3, 32, 32)):
        assert np.array_equal(ds[i][0], image) and ds[i][1] == int(ds.labels[i])


@pytest.mark.parametrize("kind", ["folder", "zipped", "hdf5"])
def test_workers_open_files_for_themselves(kind, request):
    root = request.getfixturevalue(kind)
    ds = open_dataset(config(root=root() if callable(root) else root))
    ds[0]  # opened here too, before the workers start
    assert torch.equal(pickle.loads(pickle.dumps(ds))[1][0], ds[1][0])  # as spawned ones need
    here, there = (train_batches(ds, 2, seed=0, num_workers=n) for n in (0, 2))
    for _ in range(6):
        for mine, theirs in zip(next(here), next(there)):
            assert torch.equal(mine, theirs)


def test_a_set_held_in_memory_is_the_same(folder, monkeypatch):
    cfg = config(root=folder)
    ds = open_dataset(cfg)
    cfg.DATA.IN_MEMORY, cfg.DATA.NUM_WORKERS = True, 0
    held = open_dataset(cfg)
    assert held.images.shape == (5, 3, 32, 32) and held.classes == ds.classes
    assert torch.equal(held.labels, ds.labels)
    there, here = (train_batches(x, 2, seed=0) for x in (ds, held))
    for _ in range(4):
        assert all(map(torch.equal, next(there), next(here)))
    monkeypatch.setattr("evonorm_gan.data.os.sysconf", lambda name: 100)
    with pytest.raises(UserError, match="DATA.IN_MEMORY: 5 images of 32x32 are 0 GiB, more than"):
        open_dataset(cfg)


def test_an_open_file_is_not_shared_between_processes(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("abc")
    opener = OpenFile(open, tmp_path / "file")
    with opener() as mine:
        assert opener() is mine
        monkeypatch.setattr(os, "getpid", lambda: -1)  # as after a fork
        with opener() as theirs:
            assert theirs is not mine


def test_crop_is_the_middle_square():
    pixels = noise(0, 32, 70, 3)
    image = resize(Image.fromarray(pixels), 32)
    assert np.array_equal(image.permute(1, 2, 0), pixels[:, 19:51])
    image = resize(Image.fromarray(pixels.transpose(1, 0, 2)), 32)
    assert np.array_equal(image.permute(2, 1, 0), pixels[:, 19:51])


def test_resize_is_antialiased():
    """As torch's antialiased interpolation, but for rounding; a checkerboard turns grey."""
    pixels = torch.from_numpy(noise(0, 3, 97, 97))
    expected = torch.nn.functional.interpolate(
        pixels[None].double(), size=32, mode="bilinear", antialias=True
    )[0]
    image = resize(Image.fromarray(pixels.permute(1, 2, 0).numpy()), 32)
    assert (image - expected).abs().max() <= 1
    board = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    grey = resize(Image.fromarray(board), 32).double()
    assert (grey - 127.5).abs().max() < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_on_white(mode):
    """By the formula of compositing; the colour under a transparent pixel does not show."""
    pixels, alpha = noise(0, 32, 32, 3), noise(1, 32, 32)
    alpha[:8], alpha[8:16] = 0, 255
    image = Image.fromarray(pixels).convert("L").convert("RGB") if mode == "LA" else None
    pixels = pixels if image is None else np.asarray(image)
    shown = Image.fromarray(np.dstack([pixels, alpha])).convert(mode)
    share = alpha[:, :, None] / 255
    expected = share * pixels + (1 - share) * 255
    found = resize(shown, 32).permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 1
    assert (found[:8] == 255).all() and np.array_equal(found[8:16], pixels[8:16])


def test_exif_turns_an_image(folder):
    upright = Image.fromarray(noise(0, 32, 32, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees to be seen
    upright.rotate(90).save(folder / "cat/1.png", exif=exif)
    image, _ = open_dataset(config(root=folder))[0]
    assert np.array_equal(image.permute(1, 2, 0), np.asarray(upright))


def test_a_fifo_among_images_is_named(folder):
    os.mkfifo(folder / "cat/0.png")
    (folder / "dog/nothing.png").symlink_to("nowhere")
    ds = open_dataset(config(root=folder))
    with pytest.raises(UserError, match=r"cat/0\.png: can't be decoded \(not a regular file\)"):
        ds[0]
    assert ds.fingerprint() and ds.stamp()  # reads the others


@pytest.mark.parametrize("name", ["pets.zip", "pets.h5", "pets"])
def test_a_fifo_in_place_of_a_set_is_named(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert_error(f"DATA.ROOT: .*{name} is neither a folder nor a regular", root=tmp_path / name)


def test_a_loop_of_links_is_named(folder):
    (folder / "cat/again").symlink_to(folder / "cat")
    assert_error("cat/again: a link to a folder that it lies in; remove it", root=folder)
    (folder / "cat/again").unlink()
    (folder / "puma").symlink_to(folder / "cat")  # no loop
    assert len(open_dataset(config(root=folder, classes=3))) == 7


def test_a_huge_member_of_a_zip_is_not_read(folder, tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(folder / "cat/1.png", "cat/1.png")
        with file.open("dog/1.png", "w") as member:
            for _ in range(300):
                member.write(bytes(2**20))
    ds = open_dataset(config(root=path))
    read = []
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, name: read.append(name) or b"")
    with pytest.raises(UserError, match=r"dog/1\.png: can't .*\(300 MiB, but at most 256 are read"):
        ds[1]
    assert not read


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "LA"])
def test_modes_become_rgb(mode):
    image = Image.fromarray(noise(0, 32, 32, 3)).convert(mode)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(resize(image, 32), expected)


def test_16_bit_images_are_refused(folder):
    deep = Image.fromarray(np.full((32, 32), 3000, np.uint16))
    deep.save(folder / "cat/1.png")
    with pytest.raises(UserError, match=r"cat/1\.png: .*mode I;16, but only 8 bits per channel"):
        open_dataset(config(root=folder))[0]


@pytest.mark.parametrize(
    ("damage", "workers"), [("truncated", 0), ("text", 0), ("empty", 0), ("empty", 1)]
)
def test_a_corrupt_image_is_named(folder, damage, workers):
    file = folder / "dog/a.png"
    content = {"truncated": file.read_bytes()[:-2000], "text": b"not an image", "empty": b""}
    file.write_bytes(content[damage])
    batches = train_batches(open_dataset(config(root=folder)), 5, seed=0, num_workers=workers)
    with pytest.raises(UserError) as caught:
        next(batches)
    caught.value.__traceback__ = None  # it is in a cycle that keeps the worker for seconds
    line = user_error_line(caught.value)
    assert re.match(re.escape(str(file)) + ": can't be decoded .*DATA.SKIP_CORRUPT True$", line)


def test_a_corrupt_image_is_skipped_on_request(folder, caplog):
    whole = list(open_dataset(config(root=folder)))
    (folder / "cat/2.jpg").write_bytes(b"x")
    ds = open_dataset(config(root=folder, skip=True))
    image, label = ds[1]
    (line,) = caplog.messages
    assert re.search(r"cat/2\.jpg: can't be decoded .*another image takes its place", line)
    assert torch.equal(image, whole[0][0]) and label == 0  # the other cat
    assert ds.fingerprint() != open_dataset(config(root=folder)).fingerprint()


def test_the_last_ones_replacement_is_not_the_first(folder):
    """It is another image of its class, always the same one."""
    whole = list(open_dataset(config(root=folder)))
    (folder / "dog/a2/c.png").write_bytes(b"x")
    ds = open_dataset(config(root=folder, skip=True))
    image, label = ds[4]
    assert label == 1 and any(torch.equal(image, whole[i][0]) for i in (2, 3))
    assert torch.equal(image, ds[4][0])
    for name in ("dog/a.png", "dog/b.bmp"):
        (folder / name).write_bytes(b"x")
    assert ds[4][1] == 0  # no dog is left


def test_nothing_but_corrupt_images(folder):
    for file in folder.rglob("*.*"):
        file.write_bytes(b"x")
    with pytest.raises(UserError, match="not one of the images"):
        open_dataset(config(root=folder, skip=True))[0]


def test_a_corrupt_image_in_a_zip_is_named(zipped):
    content = bytearray(zipped.read_bytes())
    with zipfile.ZipFile(zipped) as file:
        offset = file.getinfo("dog/a.png").header_offset
    content[offset + 500] ^= 255
    zipped.write_bytes(content)
    with pytest.raises(UserError, match=r"pets\.zip: dog/a\.png: can't be decoded \(Bad CRC"):
        open_dataset(config(root=zipped))[2]


# What identifies a data set.


def fingerprint(root, **kwargs):
    return open_dataset(config(root=root, **kwargs)).fingerprint()


def test_fingerprint_is_stable(folder, zipped, hdf5):
    for root in (folder, zipped, hdf5()):
        assert re.fullmatch("[0-9a-f]{64}", fingerprint(root))
        assert fingerprint(root) == fingerprint(root)


@pytest.mark.parametrize("kind", ["folder", "zipped", "hdf5"])
def test_a_copy_has_the_same_fingerprint_and_another_stamp(kind, request, tmp_path):
    root = request.getfixturevalue(kind)
    root = root() if callable(root) else root
    copy = tmp_path / "elsewhere" / root.name
    copy.parent.mkdir()
    shutil.copytree(root, copy) if root.is_dir() else shutil.copy(root, copy)
    one, other = (open_dataset(config(root=path)) for path in (root, copy))
    assert one.fingerprint() == other.fingerprint() and one.stamp() != other.stamp()
    assert one.stamp() == open_dataset(config(root=root)).stamp()


@pytest.mark.parametrize("kind", ["folder", "zipped", "hdf5"])
def test_fingerprint_notices_a_rewrite_with_the_time_restored(kind, request):
    root = request.getfixturevalue(kind)
    root = root() if callable(root) else root
    file = root / "dog/b.bmp" if root.is_dir() else root
    before, times, stamp = fingerprint(root), file.stat(), open_dataset(config(root=root)).stamp()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    while file.stat().st_ctime_ns == times.st_ctime_ns:  # the clock of a file system is coarse
        file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_mtime_ns == times.st_mtime_ns
    assert file.stat().st_size == times.st_size
    assert fingerprint(root) != before and open_dataset(config(root=root)).stamp() != stamp


def test_fingerprint_notices_files_names_and_resolution(folder):
    seen = [fingerprint(folder), fingerprint(folder, resolution=64), fingerprint(folder, skip=True)]
    (folder / "cat/2.jpg").rename(folder / "cat/0.jpg")
    seen.append(fingerprint(folder))
    (folder / "cat").rename(folder / "lynx")
    seen.append(fingerprint(folder))
    (folder / "dog/a.png").unlink()
    seen.append(fingerprint(folder))
    Image.fromarray(noise(9, 32, 32, 3)).save(folder / "dog/new.png")
    seen.append(fingerprint(folder))
    assert len(set(seen)) == len(seen)


# The line for each mistake.


def test_wrong_number_of_classes(folder, zipped, hdf5):
    assert_error(
        r"pets has 2 classes \(cat, dog\), but MODEL.NUM_CLASSES is 3", root=folder, classes=3
    )
    assert_error(r"pets.zip has 2 classes \(cat, dog\)", root=zipped, classes=3)
    assert_error(r"pets.h5 has 2 classes \(cat, dog\)", root=hdf5(), classes=3)
    assert_error(r"digits has 10 classes \(0, 1, 2, \.\.\.\), but", name="digits", classes=2)
    # One level too high.
    assert_error(r"has 1 class \(pets\), but MODEL.NUM_CLASSES is 2", root=folder.parent)


def test_no_folders_or_images(folder, tmp_path):
    assert_error("DATA.ROOT: nowhere does not exist", root="nowhere")
    # One level too low.
    assert_error("cat should hold a folder per class", root=folder / "cat")
    (folder / "bird").mkdir()
    assert_error("a folder per class.*no valid file for the classes bird", root=folder)
    assert_error("a folder per class", root=folder / "cat/1.png")
    empty = tmp_path / "empty.zip"
    with zipfile.ZipFile(empty, "w"):
        pass
    assert_error("empty.zip: a zip should hold a folder per class", root=empty)
    with zipfile.ZipFile(empty, "w") as file:
        file.write(folder / "cat/1.png", "1.png")
    assert_error("empty.zip: a zip should hold a folder per class", root=empty)
    empty.write_bytes(b"PK no zip")
    assert_error("empty.zip: File is not a zip file", root=empty)


def test_no_validation_split(folder):
    with pytest.raises(UserError, match="has no validation split"):
        open_dataset(config(root=folder), "val")


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"classes": None}, "tools/pack_images.py writes them: .*classes"),
        ({"classes": [1, 2]}, "tools/pack_images.py writes them: .*string"),
        ({"labels": [0.0, 0, 1, 1, 1]}, "tools/pack_images.py writes them: .*float64"),
        ({"labels": [0, 1, 1, 1]}, r"images are uint8 \(5, 3, 32, 32\).*with its 4 labels"),
        ({"labels": [0, 0, 1, 1, 2]}, "labels are 0 to 2, but should be 0 to 1"),
        ({"labels": [0, 0, 1, 1, -1]}, "labels are -1 to 1, but should be 0 to 1"),
        ({"images": np.zeros((5, 3, 64, 64), np.uint8)}, "and MODEL.RESOLUTION 32"),
        ({"images": np.zeros((5, 32, 32, 3), np.uint8)}, r"\(5, 32, 32, 3\), but should be"),
        ({"images": np.zeros((5, 3, 32, 32))}, "images are float64"),
    ],
)
def test_wrong_hdf5(hdf5, changed, line):
    assert_error(f"pets.h5: .*{line}", root=hdf5(**changed))


def test_damaged_hdf5(hdf5):
    path = hdf5()
    path.write_bytes(path.read_bytes()[:100])
    assert_error("pets.h5: ", root=path)


# Torchvision's sets.


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def mnist(tmp_path):
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for seed, (part, num) in enumerate((("train", 30), ("t10k", 20))):
        write_idx(raw / f"{part}-images-idx3-ubyte", noise(seed, num, 28, 28))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(num, dtype=np.uint8) % 10)
    return tmp_path


def test_mnist(mnist):
    ds = open_dataset(config("FashionMNIST", mnist, 10))
    assert ds.images.shape == (30, 3, 32, 32) and ds.classes[9] == "Ankle boot"
    assert ds.labels.tolist() == [*range(10)] * 3
    expected = Image.fromarray(noise(0, 30, 28, 28)[4]).resize((32, 32), Image.Resampling.BILINEAR)
    assert all(np.array_equal(channel, expected) for channel in ds[4][0])
    val = open_dataset(config("FashionMNIST", mnist, 10), "val")
    assert len(val) == 20 and val.fingerprint() != ds.fingerprint()


def test_cifar10(tmp_path, monkeypatch):
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    pixels = noise(0, 6, 20, 3072)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        batch = {"data": pixels[i], "labels": [k % 10 for k in range(20)]}
        (base / name).write_bytes(pickle.dumps(batch))
    names = [f"class {i}" for i in range(10)]
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    # The checksums are those of the real files.
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    ds = open_dataset(config("CIFAR10", tmp_path, 10))
    assert ds.classes == names and len(ds) == 100
    assert np.array_equal(ds.images, pixels[:5].reshape(100, 3, 32, 32))
    val = open_dataset(config("CIFAR10", tmp_path, 10), "val")
    assert np.array_equal(val.images, pixels[5].reshape(20, 3, 32, 32))


def test_a_set_is_downloaded_if_that_is_asked_for(mnist, tmp_path, monkeypatch):
    """From where torchvision has it from, to DATA.ROOT; then it is as one that was there."""
    there, root = mnist / "FashionMNIST", tmp_path / "new"
    calls = []

    def download(self):
        calls.append(self.root)
        shutil.copytree(there, root / "FashionMNIST", dirs_exist_ok=True)

    monkeypatch.setattr(datasets.FashionMNIST, "download", download)
    cfg = config("FashionMNIST", root, 10)
    with pytest.raises(UserError, match="finds no FashionMNIST"):
        open_dataset(cfg)
    cfg.DATA.DOWNLOAD = True
    ds = open_dataset(cfg)
    expected = open_dataset(config("FashionMNIST", mnist, 10))
    assert len(calls) == 1 and torch.equal(ds.images, expected.images)

    def fail(self):
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets.FashionMNIST, "download", fail)
    with pytest.raises(UserError, match=r"DATA.DOWNLOAD: no FashionMNIST in .* \(no network\)$"):
        open_dataset(cfg)
    cfg.DATA.NAME = "ImageNet"
    with pytest.raises(UserError, match="torchvision can't download ImageNet"):
        open_dataset(cfg)


@pytest.fixture
def food(tmp_path):
    """Files that are decoded on demand, listed by split."""
    base = tmp_path / "food-101"
    for name in ("meta", "images/pie", "images/soup"):
        (base / name).mkdir(parents=True)
    for i in range(4):
        for kind in ("pie", "soup"):
            Image.fromarray(noise(i, 40, 50, 3)).save(base / f"images/{kind}/{i}.jpg")
    for split, numbers in (("train", (0, 1, 2)), ("test", (3,))):
        listed = {kind: [f"{kind}/{i}" for i in numbers] for kind in ("pie", "soup")}
        (base / f"meta/{split}.json").write_text(json.dumps(listed))
    return tmp_path


def test_torchvision_files(food):
    ds = open_dataset(config("Food101", food))
    assert ds.images is None and ds.classes == ["pie", "soup"]
    assert describe(ds) == "2 classes (pie, soup), 6 images of 32x32, 3 per class"
    stored = io.BytesIO((food / "food-101/images/soup/1.jpg").read_bytes())
    assert torch.equal(ds[4][0], resize(Image.open(stored), 32)) and ds[4][1] == 1
    val = open_dataset(config("Food101", food), "val")  # called "test" there
    assert len(val) == 2 and val.fingerprint() != ds.fingerprint()
    before = ds.fingerprint()
    (food / "food-101/images/pie/2.jpg").write_bytes(b"x")
    ds = open_dataset(config("Food101", food))
    assert ds.fingerprint() != before
    with pytest.raises(UserError, match=r"torchvision's Food101: .*images/pie/2\.jpg: can't be"):
        ds[2]


def test_imagenet(tmp_path):
    wnids = {"n01": ("tench", "Tinca tinca"), "n02": ("goldfish",)}
    torch.save((wnids, []), tmp_path / "meta.bin")
    for split in ("train", "val"):
        for i, wnid in enumerate(wnids):
            (tmp_path / split / wnid).mkdir(parents=True)
            Image.fromarray(noise(i, 32, 32, 3)).save(tmp_path / split / wnid / "1.png")
    ds = open_dataset(config("ImageNet", tmp_path))
    assert ds.classes == ["tench, Tinca tinca", "goldfish"] and ds.labels.tolist() == [0, 1]
    assert np.array_equal(ds[1][0].permute(1, 2, 0), noise(1, 32, 32, 3))
    assert len(open_dataset(config("ImageNet", tmp_path), "val")) == 2


def test_missing_files_are_not_downloaded(tmp_path):
    assert_error(
        r"torchvision finds no CIFAR10 in .*\(Dataset not found.*; to download it: "
        r"python -c \"from torchvision import datasets; "
        rf"datasets.CIFAR10\('{tmp_path}', download=True\)\"$",
        *("CIFAR10", tmp_path, 10),
    )
    with pytest.raises(UserError, match=r"SVHN\('\S+', split='test', download=True\)"):
        open_dataset(config("SVHN", tmp_path, 10), "val")
    assert_error(r"finds no ImageNet in .*devkit.*\)$", "ImageNet", tmp_path, 1000)
    assert list(tmp_path.iterdir()) == []


def test_names_that_cannot_be_opened():
    assert_error("no data set 'CIFAR-10' to open; close to it are CIFAR10", "CIFAR-10")
    assert_error("no data set 'digit' to open; close to it are digits", "digit")
    assert_error("no data set 'FakeData' to open", "FakeData")
    assert_error("no data set '__doc__' to open", "__doc__")


def test_sets_without_a_class_per_image(tmp_path):
    for kind in ("dog", "cat"):
        (tmp_path / "2021_train/00000_x_x_x_x_x_x_x").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"2021_train/00000_x_x_x_x_x_x_x/{kind}.jpg").write_bytes(b"")
    line = "torchvision's INaturalist does not list one class per image; use DATA.NAME ''"
    assert_error(line, "INaturalist", tmp_path)
    # Its labels are files too.
    (tmp_path / "Kitti/raw/training/image_2").mkdir(parents=True)
    (tmp_path / "Kitti/raw/training/image_2/1.png").write_bytes(b"")
    (tmp_path / "Kitti/raw/training/label_2").mkdir()
    assert_error("torchvision's Kitti does not list one class per image", "Kitti", tmp_path)


def test_no_validation_split_in_torchvision(tmp_path):
    with pytest.raises(UserError, match="torchvision's EuroSAT has no split for val"):
        open_dataset(config("EuroSAT", tmp_path, 10), "val")
