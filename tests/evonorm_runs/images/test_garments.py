"""The embedded garments: what the files hold, and that no part sees another's images."""

from __future__ import annotations

import gzip

import pytest
import torch
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

from evonorm_runs.errors import UserError
from evonorm_runs.images.garments import CLASSES, FOLDER, PARTS, load_garments


@pytest.fixture(scope="module")
def parts():
    return {part: load_garments(part) for part in PARTS}


def test_parts_are_balanced_and_share_no_image(parts):
    assert {part: len(labels) for part, (_, labels) in parts.items()} == {
        "train": 8000,
        "val": 1000,
        "test": 1000,
    }
    for images, labels in parts.values():
        assert images.dtype == torch.uint8 and images.shape[1:] == (1, 28, 28)
        assert torch.bincount(labels).tolist() == [len(labels) // 10] * len(CLASSES)
    every = [image.numpy().tobytes() for images, _ in parts.values() for image in images]
    assert len(set(every)) == 10_000  # Fashion-MNIST's test set holds no image twice


def test_the_files_are_read_as_torchvision_reads_them(tmp_path, parts):
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(gzip.decompress((FOLDER / f"{name}.gz").read_bytes()))
    images, labels = (read_sn3_pascalvincent_tensor(str(p)) for p in sorted(tmp_path.iterdir()))
    right = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels)}
    for mine, classes in parts.values():
        for image, label in zip(mine, classes):
            assert right.pop(image.numpy().tobytes()) == label
    assert not right


def test_resolutions(parts):
    whole, small = load_garments("val", 32)[0], load_garments("val", 16)[0]
    assert torch.equal(whole[:, :, 2:30, 2:30], parts["val"][0])
    assert whole[:, :, :2].sum() == whole[..., 30:].sum() == 0
    blocks = whole.double().unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))
    assert small.shape == (1000, 1, 16, 16) and (small - blocks).abs().max() <= 0.5
    with pytest.raises(UserError, match="no part 'all'; they have train, val, test"):
        load_garments("all")
    with pytest.raises(UserError, match="16 or 28 or 32, not 24"):
        load_garments("val", 24)
