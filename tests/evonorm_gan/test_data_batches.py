"""The endless batches: their order, starting anywhere, several processes, workers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from evonorm_gan import trainer
from evonorm_gan.data import to_float, train_batches
from evonorm_runs.errors import UserError
from evonorm_runs.images.sets import DecodedSet, ImageSet, MemorySet

NUM = 23


def images_of(num):
    """Images of which each tells its index, mirrored or not."""
    images = torch.zeros(num, 3, 4, 4, dtype=torch.uint8)
    images[:, :, :, 0] = torch.arange(num, dtype=torch.uint8)[:, None, None]
    images[:, :, :, 3] = 255
    return images


class Lazy(ImageSet):
    """The same, without being in memory as a whole."""

    def __init__(self):
        super().__init__(4, torch.arange(NUM) * 3, [str(i) for i in range(NUM * 3)])

    def __getitem__(self, index):
        return images_of(NUM)[index], int(self.labels[index])


@pytest.fixture(params=["memory", "lazy"])
def ds(request):
    return MemorySet(images_of(NUM), *_rest()) if request.param == "memory" else Lazy()


def _rest():
    return Lazy().labels, Lazy().classes


def take(count, *args, **kwargs):
    return list(itertools.islice(train_batches(*args, **kwargs), count))


def assert_same(some, others):
    assert len(some) == len(others) > 0
    for (images, labels), (other_images, other_labels) in zip(some, others):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)


def indices(batches):
    """Of the images in batches, one after the other; checks that the labels are theirs."""
    images, labels = (torch.cat(parts) for parts in zip(*batches))
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    left, right = images[:, 0, 0, 0], images[:, 0, 0, 3]
    index = torch.where(right == 255, left, right).long()
    assert torch.equal(index * 3, labels)
    return index.tolist()


def test_every_epoch_is_a_new_order_of_all_images(ds):
    found = indices(take(14, ds, 5, seed=0))
    epochs = [found[i : i + NUM] for i in range(0, 3 * NUM, NUM)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUM))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != indices(take(5, ds, 5, seed=1))[:NUM]


@pytest.mark.parametrize("start", [1, 4, 5, 46, 1000])
def test_starting_anywhere(ds, start):
    whole = train_batches(ds, 5, seed=3)
    assert_same(list(itertools.islice(whole, start, start + 7)), take(7, ds, 5, 3, start=start))


def test_processes_together_are_one(ds):
    ranks = [take(12, ds, 3, seed=0, start=2, rank=r, world_size=2) for r in range(2)]
    joined = [tuple(map(torch.cat, zip(*batches))) for batches in zip(*ranks)]
    assert_same(joined, take(12, ds, 6, seed=0, start=2))


def test_batches_larger_than_the_set(ds):
    found = indices(take(2, ds, 40, seed=0))
    assert sorted(found[:NUM]) == sorted(found[NUM : 2 * NUM]) == list(range(NUM))


def test_memory_and_loader_agree():
    memory = MemorySet(images_of(NUM), *_rest())
    assert_same(take(9, memory, 5, seed=0), take(9, Lazy(), 5, seed=0))


def test_workers_change_nothing():
    without = take(12, Lazy(), 5, seed=0, start=3)
    assert_same(without, take(12, Lazy(), 5, seed=0, start=3, num_workers=2))


def test_flips(ds):
    batches = take(200, ds, 5, seed=0)
    mirrored = torch.cat([images[:, 0, 0, 0] == 255 for images, _ in batches]).double()
    assert mirrored.mean() == pytest.approx(0.5, abs=0.08)  # five standard deviations
    # Not a function of the image: each comes both ways.
    both = {(int(label), bool(images[i, 0, 0, 0] == 255)) for images, labels in batches
            for i, label in enumerate(labels)}  # fmt: skip
    assert len(both) == 2 * NUM
    plain = take(200, ds, 5, seed=0, flip=False)
    assert all((images[:, :, :, 3] == 255).all() for images, _ in plain)
    assert indices(plain) == indices(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_stays(ds, workers):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    take(3, ds, 5, seed=0, num_workers=workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_are_copies():
    ds = MemorySet(images_of(NUM), *_rest())
    for images, labels in take(3, ds, 5, seed=0, flip=False):
        images.zero_(), labels.zero_()
    assert torch.equal(ds.images, images_of(NUM)) and torch.equal(ds.labels, Lazy().labels)


class Wide(DecodedSet):
    """Images of 9x6 pixels that tell their place, and which image it is: (x, y, index)."""

    def __init__(self, resolution, skip_corrupt=False):
        super().__init__(resolution, torch.arange(NUM), list(map(str, range(NUM))), skip_corrupt)

    def _load(self, index):
        if index == 4:
            raise OSError("damaged")
        y, x = np.indices((6, 9))
        return Image.fromarray(np.stack([x, y, np.full_like(x, index)], 2).astype(np.uint8))

    def _name(self, index):
        return f"image {index}"


def corners(batches):
    """Of all images, the pixel at the left and top."""
    return torch.cat([images[:, :, 0, 0] for images, _ in batches])


@pytest.mark.parametrize("side, places", [(1.0, (4, 1)), (0.5, (7, 4))])
def test_random_crops(side, places):
    """Squares of whole pixels, of 6 or 3 of them, that lie everywhere alike."""
    ds, size = Wide(round(6 * side), skip_corrupt=True), round(6 * side)
    batches = take(300, ds, 6, seed=0, flip=False, random_crop=side)
    corner = corners(batches)
    x, y, index = corner.long().T
    inside = torch.cat([images for images, _ in batches]) - corner[:, :, None, None]
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    assert (inside[:, :2] == torch.stack([columns, rows])).all()
    for place, many in zip((x, y), places):
        share = torch.bincount(place, minlength=many) / len(place)
        assert len(share) == many and (share - 1 / many).abs().max() < 0.04
    labels = torch.cat([labels for _, labels in batches])
    assert torch.equal(index, labels) and 4 not in labels  # another one takes its place
    assert len({(i, j) for i, j in zip(index.tolist(), x.tolist())}) > 3 * NUM  # not by the image


def test_random_crops_are_a_function_of_the_seed_and_the_batch():
    options = {"flip": True, "random_crop": 0.5}
    ds = Wide(3, skip_corrupt=True)
    whole = take(12, ds, 6, seed=3, **options)
    assert_same(whole[5:], take(7, ds, 6, 3, start=5, num_workers=2, **options))
    ranks = [take(12, ds, 3, 3, rank=r, world_size=2, **options) for r in range(2)]
    assert_same([tuple(map(torch.cat, zip(*parts))) for parts in zip(*ranks)], whole)
    assert not torch.equal(corners(whole), corners(take(12, ds, 6, seed=4, **options)))
    with pytest.raises(UserError, match="image 4: can't be decoded"):
        take(9, Wide(3), 6, seed=3, **options)


def test_the_trainer_crops_by_its_key(tiny_cfg):
    cfg = tiny_cfg("DATA.RANDOM_CROP", 0.5, "DATA.NUM_WORKERS", 0, "DATA.FLIP", False)
    found = itertools.islice(trainer.real_batches(cfg, Wide(3, True), 5), 4)
    options = {"flip": False, "random_crop": 0.5, "start": 5}
    assert_same(list(found), take(4, Wide(3, True), cfg.SOLVER.BATCH_SIZE, cfg.SEED, **options))


def test_to_float():
    levels = to_float(torch.arange(256).to(torch.uint8))
    assert levels.dtype == torch.float32
    torch.testing.assert_close(levels, torch.linspace(-1, 1, 256))
    assert levels[0] == -1 and levels[-1] == 1
