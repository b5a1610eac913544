"""A classifier's images in shards, against the same images in folders."""

from __future__ import annotations

import io
import tarfile

import pytest
import torch

from evonorm_classifier.data import open_data, worker_batches
from evonorm_classifier.run import ClassifierRun
from evonorm_classifier.shards import nearly_sequential, open_shard, read_index
from evonorm_classifier.trainer import train_batches
from evonorm_runs.errors import UserError


def write_shard(path, samples):
    """A tar file with the files of each sample, (name, bytes)."""
    with tarfile.open(path, "w") as tar:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(folder):
    """The images of `folder` in its order, four in a shard: its folder's path."""
    root = folder / "shards"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        files = sorted((folder / split).glob("*/*.png"))
        for i in range(0, len(files), 4):
            samples = []
            for file in files[i : i + 4]:
                key = f"n0/{file.parent.name}_{file.stem}"
                label = str("abc".index(file.parent.name)).encode()
                samples += [(f"{key}.png", file.read_bytes()), (f"{key}.cls", label)]
                samples.append((f"{key}.json", b"{}"))  # what else is known of it
            write_shard(root / split / f"{i:06d}.tar", samples)
    (root / "classes.txt").write_text("a\nb\nc\n")
    return root


@pytest.fixture
def open_shards(cfg, shards):
    """open_shards(*KEY VALUE): the training and the validation set."""
    settings = ("DATA.NAME", "shards", "DATA.ROOT", shards, "DATA.NUM_WORKERS", 0)
    return lambda *overrides: open_data(cfg(*settings, *overrides))


@pytest.mark.parametrize("counts", [(0, 0), (6, 3)])
def test_they_are_the_folders_images(cfg, folder, open_shards, counts):
    plain = open_data(cfg("DATA.NAME", "folder", "DATA.ROOT", folder, "DATA.NUM_WORKERS", 0))
    ours = open_shards("DATA.TRAIN_IMAGES", counts[0], "DATA.VAL_IMAGES", counts[1])
    for a, b in zip(plain, ours):
        assert len(a) == len(b) and a.classes == b.classes
        chosen = [[len(a) - 1, 0], [1, 2]]
        for (x, labels), (x2, labels2) in zip(a.batches(chosen, 1), b.batches(chosen, 1)):
            assert torch.equal(x, x2) and torch.equal(labels, labels2)


def test_processes_that_decode_share_the_open_shards(open_shards):
    chosen = [[0, 5], [4, 1]]
    alone, _ = open_shards()
    loaded, _ = open_shards("DATA.NUM_WORKERS", 2)
    one = list(alone.batches(chosen, 1))  # opens both shards before the processes start
    for (x, _), (x2, _) in zip(one, loaded.batches(chosen, 1)):
        assert torch.equal(x, x2)


class TestOrder:
    ENDS = [1000, 1900, 3000, 3001]  # shards of different sizes

    def order(self, cfg, epoch, ranks=1, **others):
        def order(cfg, generator):
            return nearly_sequential(self.ENDS, cfg, generator)

        c = cfg("SOLVER.WORKERS", 2, "SOLVER.IMS_PER_WORKER", 7, "DATA.SHUFFLE", 100, *others)
        return [list(worker_batches(3001, epoch, c, rank, ranks, order)) for rank in range(ranks)]

    def test_each_image_at_most_once_by_the_seed_and_epoch(self, cfg):
        (one,), (again,), (two,) = (self.order(cfg, epoch) for epoch in (1, 1, 2))
        images = [i for batch in one for i in batch]
        steps = 3001 // 14
        assert len(images) == len(set(images)) == 14 * steps and max(images) <= 3000
        assert one == again and one != two

    def test_processes_share_it_exactly(self, cfg):
        (alone,), (first, second) = self.order(cfg, 1), self.order(cfg, 1, ranks=2)
        assert alone[::2] == first and alone[1::2] == second

    def test_a_worker_reads_few_shards_at_a_time_in_blocks_of_shuffled_images(self, cfg):
        first, second = self.order(cfg, 1, ranks=2)
        for batches in (first, second):
            images = torch.tensor([i for batch in batches for i in batch])
            blocks = images.split(100)
            # Sorted, a block is a row of neighbours, or two rows and the lone image between them.
            for block in blocks:
                breaks = (block.sort().values.diff() != 1).sum()
                assert breaks <= 2
            assert not all(torch.equal(block, block.sort().values) for block in blocks)


def test_a_run_goes_on_within_an_epoch(cfg, shards, open_shards):
    settings = ("DATA.NAME", "shards", "DATA.ROOT", shards, "DATA.NUM_WORKERS", 0)
    c = cfg(*settings, "SOLVER.IMS_PER_WORKER", 2, "SOLVER.EPOCHS", 3)
    train, _ = open_data(c)
    run = ClassifierRun(c, torch.device("cpu"), len(train), train.classes)
    whole = list(train_batches(run, train))
    run.step = 4  # the first batch of the second epoch is done
    rest = list(train_batches(run, train))
    assert len(whole) == 9 and len(rest) == 5
    for (x, labels), (x2, labels2) in zip(whole[4:], rest):
        assert torch.equal(x, x2) and torch.equal(labels, labels2)


class TestWhatGoesWrong:
    def test_without_shards_or_classes(self, open_shards, shards):
        for path in (shards / "val").iterdir():
            path.unlink()
        with pytest.raises(UserError, match="^DATA.ROOT: .*val should hold shards, "):
            open_shards()
        (shards / "classes.txt").write_text("")
        with pytest.raises(UserError, match="classes.txt is empty, but should name"):
            open_shards()
        (shards / "classes.txt").unlink()
        with pytest.raises(UserError, match="^DATA.ROOT: .*No such file .*classes.txt"):
            open_shards()

    @pytest.mark.parametrize("num", [4, 9])
    def test_another_number_of_images_than_shards_can_hold(self, open_shards, num):
        with pytest.raises(UserError, match=f"^DATA.TRAIN_IMAGES is {num}, but 2 shards with 4 im"):
            open_shards("DATA.TRAIN_IMAGES", num)

    def test_a_shard_of_another_size(self, open_shards):
        train, _ = open_shards("DATA.TRAIN_IMAGES", 7)  # and there are 6
        with pytest.raises(UserError, match="000004.tar holds 2 images, but should hold 3, as"):
            list(train.batches([[6]], 0))

    @pytest.mark.parametrize(
        "samples, line",
        [
            ([("a.png", b"")], "a has no .cls file"),
            ([("a.cls", b"0")], "a has no image (.jpg"),
            ([("a.png", b"no image"), ("a.cls", b"0")], "image 0: cannot identify image"),
            ([("a.png", b"GOOD"), ("a.cls", b"3")], "its class is b'3', but should be a number b"),
            ([("a.png", b"GOOD"), ("a.cls", b"cat")], "its class is b'cat', but should be"),
        ],
    )
    def test_what_is_in_a_shard(self, folder, open_shards, shards, samples, line):
        image = (folder / "train/a/0.png").read_bytes()
        samples = [(name, image if data == b"GOOD" else data) for name, data in samples]
        write_shard(shards / "train/000004.tar", samples)
        with pytest.raises(UserError) as raised:
            train, _ = open_shards()
            list(train.batches([[4]], 0))
        assert "000004.tar: " in str(raised.value) and line in str(raised.value)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("keep, line", [(700, ""), (0, "empty file"), (-1, "invalid header")])
    def test_a_damaged_shard(self, open_shards, shards, keep, line):
        path = shards / "train/000004.tar"
        data = path.read_bytes()
        path.write_bytes(b"no tar" * 100 if keep < 0 else data[:keep])
        with pytest.raises(UserError, match=f"000004.tar: .*{line}"):
            train, _ = open_shards()
            list(train.batches([[4]], 0))


@pytest.fixture(autouse=True)
def closed():
    """Afterwards no shard is kept open."""
    yield
    read_index.cache_clear()
    open_shard.cache_clear()
