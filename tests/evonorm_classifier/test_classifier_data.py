"""A classifier's images, and how a step's are dealt to workers and processes."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from evonorm_classifier import data, loading
from evonorm_classifier.data import open_data, seed_of, val_batches, worker_batches
from evonorm_classifier.trainer import train
from evonorm_runs.errors import UserError
from evonorm_runs.images.digits import make_digits
from evonorm_runs.images.garments import load_garments

CONFIG = str(Path(__file__).parents[2] / "configs" / "classification" / "digits.yaml")
cached_digits = cache(make_digits)


def of_folder(cfg, folder, *overrides):
    return cfg("DATA.NAME", "folder", "DATA.ROOT", folder, "DATA.NUM_WORKERS", 0, *overrides)


def test_garments_are_enlarged_and_grey(cfg):
    train, val = open_data(cfg("DATA.NAME", "garments", "INPUT.SIZE", 56))
    assert (len(train), len(val)) == (8000, 1000) and train.classes[9] == "ankle boot"
    stored, labels = load_garments("train")
    ((images, chosen),) = train.batches([[0, 7]], seed=0)
    assert images.shape == (2, 3, 56, 56) and torch.equal(chosen, labels[[0, 7]])
    assert torch.equal(images[:, 0], images[:, 2])
    # As the set's mean and deviation say; enlarging keeps the mean.
    pixels = images * train.pixel_std[0] + train.pixel_mean[0]
    torch.testing.assert_close(pixels.mean(), stored[[0, 7]].float().mean(), rtol=0.02, atol=0.0)


def test_a_run_can_be_evaluated_on_images_that_chose_nothing(cfg, folder):
    garments = cfg("DATA.NAME", "garments", "TEST.SPLIT", "test")
    images, labels = load_garments("test")
    found = open_data(garments)[1]
    assert torch.equal(found.images, images) and torch.equal(found.labels, labels)
    shutil.copytree(folder / "val", folder / "test")
    shutil.copy(folder / "test" / "a" / "0.png", folder / "test" / "a" / "more.png")
    settings = of_folder(cfg, folder), of_folder(cfg, folder, "TEST.SPLIT", "test")
    val, test = (open_data(c)[1] for c in settings)
    assert len(test) == len(val) + 1 and test.images.root == str(folder / "test")
    with pytest.raises(UserError, match="^TEST.SPLIT is test, but the digits have train and val"):
        open_data(cfg("TEST.SPLIT", "test"))


class TestWorkers:
    def test_any_number_of_processes_gives_the_workers_the_same_images(self, cfg):
        c = cfg("SOLVER.WORKERS", 4, "SOLVER.IMS_PER_WORKER", 3)
        alone = list(worker_batches(50, 1, c, 0, 1))
        assert [len(batch) for batch in alone] == [3] * 16  # 4 steps; the last 2 images are left
        for ranks in (2, 4):
            each = [list(worker_batches(50, 1, c, rank, ranks)) for rank in range(ranks)]
            own = 4 // ranks
            together = [
                batch
                for step in range(4)
                for batches in each
                for batch in batches[step * own : (step + 1) * own]
            ]
            assert together == alone

    def test_an_epoch_takes_each_image_at_most_once_in_an_order_of_its_own(self, cfg):
        c = cfg("SOLVER.IMS_PER_WORKER", 4)
        one, again, two = (
            [i for batch in worker_batches(20, epoch, c, 0, 1) for i in batch]
            for epoch in (1, 1, 2)
        )
        other = [i for batch in worker_batches(20, 1, cfg("SEED", 1), 0, 1) for i in batch]
        assert sorted(one) == sorted(two) == list(range(20))
        assert one == again and one != two and one != other

    @pytest.mark.parametrize("ranks", [1, 3])
    def test_validation_takes_all_images_once(self, ranks):
        shares = [list(val_batches(20, 4, rank, ranks)) for rank in range(ranks)]
        assert sorted(i for share in shares for batch in share for i in batch) == list(range(20))
        assert max(len(batch) for share in shares for batch in share) == 4

    def test_nearby_parts_give_unrelated_seeds(self):
        seeds = {seed_of(a, b) for a in range(30) for b in range(30)}
        assert len(seeds) == 900 and all(0 <= seed < 2**63 for seed in seeds)


class TestDigits:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(data, "make_digits", cached_digits)

    def test_one_variant_of_each_scan(self, cfg):
        train, val = open_data(cfg())
        images, labels = cached_digits("train", 32)
        assert (len(train), len(val)) == (1437, 1440)
        assert torch.equal(train.labels, labels[::8])
        assert torch.equal(((train.images + 1) * 127.5).round().byte(), images[::8])

    def test_all_variants(self, cfg):
        train, _ = open_data(cfg("DATA.VARIANTS", 8))
        assert len(train) == 1437 * 8

    def test_batches(self, cfg):
        train, _ = open_data(cfg())
        ((x, y),) = train.batches([[3, 1]], seed=0)
        assert x.shape == (2, 3, 32, 32) and x.min() >= -1 and x.max() <= 1
        assert torch.equal(x[1], train.images[1]) and y.tolist() == train.labels[[3, 1]].tolist()


class TestFolder:
    def test_an_images_crop_depends_on_the_seed_only(self, cfg, folder):
        chosen = [[0, 1, 2], [5, 4, 3]]
        alone, _ = open_data(of_folder(cfg, folder))
        loaded, _ = open_data(of_folder(cfg, folder, "DATA.NUM_WORKERS", 2))
        one = list(alone.batches(chosen, seed=1))
        torch.manual_seed(11)
        state = torch.get_rng_state()
        for (x, y), (x2, y2) in zip(one, loaded.batches(chosen, seed=1)):
            assert torch.equal(x, x2) and torch.equal(y, y2)
        (reverse, _), _ = alone.batches([[3, 4, 5], [0]], seed=1)
        assert torch.equal(reverse, one[1][0].flip(0))
        other = list(alone.batches(chosen, seed=2))
        assert not torch.equal(one[0][0], other[0][0])
        assert one[0][0].shape == (3, 3, 32, 32) and one[0][1].tolist() == [0, 0, 1]
        assert torch.equal(torch.get_rng_state(), state)  # the loop's own draws are left alone

    def test_validation_takes_the_centre(self, cfg, folder):
        image = Image.new("RGB", (224, 224), (255, 0, 0))
        image.paste((0, 0, 255), (14, 14, 210, 210))  # the centre's 196 of 224, as 224 of 256
        image.resize((256, 256)).save(folder / "val" / "a" / "0.png")
        _, val = open_data(of_folder(cfg, folder, "INPUT.SIZE", 224))
        ((x, y),) = val.batches([[0]], seed=0)
        assert x.shape == (1, 3, 224, 224) and y.tolist() == [0]
        blue = (torch.tensor([0.0, 0.0, 1.0]) - torch.tensor([0.485, 0.456, 0.406])) / (
            torch.tensor([0.229, 0.224, 0.225])
        )
        inner = x[0, :, 4:-4, 4:-4]
        torch.testing.assert_close(inner, blue[:, None, None].expand_as(inner))

    def test_validation_takes_the_size_with_less_padding(self, cfg, folder):
        image = Image.new("RGB", (96, 64), (255, 0, 0))  # 32 of 64 pixels are the crop
        image.paste((0, 0, 255), (32, 16, 64, 48))
        image.save(folder / "val" / "a" / "0.png")
        settings = "INPUT.CROP_PADDING", 32, "INPUT.INTERPOLATION", "bicubic"
        _, val = open_data(of_folder(cfg, folder, *settings))
        ((x, _),) = val.batches([[0]], seed=0)
        assert x.shape == (1, 3, 32, 32) and len(x[0].flatten(1).unique(dim=1).T) == 1
        assert x[0, 2, 0, 0] > 2 and x[0, 0, 0, 0] < -2

    def test_interpolation_is_pils(self, cfg, folder):
        Image.open(folder / "val" / "a" / "0.png").resize((40, 40)).save(folder / "val/a/0.png")
        pictures = {}
        for name, how in (("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)):
            _, val = open_data(of_folder(cfg, folder, "INPUT.INTERPOLATION", name))
            ((x, _),) = val.batches([[0]], seed=0)
            std, mean = (torch.tensor(values)[:, None, None] for values in (data.STD, data.MEAN))
            ours = (255 * (x[0] * std + mean)).round().byte()
            image = Image.open(folder / "val/a/0.png").resize((37, 37), how)
            theirs = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)
            pictures[name] = ours
            assert torch.equal(ours, theirs[:, 2:34, 2:34])
        assert not torch.equal(pictures["bilinear"], pictures["bicubic"])

    @pytest.mark.parametrize("name", ["autoaugment", "randaugment"])
    def test_an_augmentation_depends_on_the_seed_and_the_image_only(self, cfg, folder, name):
        plain, _ = open_data(of_folder(cfg, folder))
        augmented, val = open_data(of_folder(cfg, folder, "INPUT.AUGMENT", name))
        one, two = (list(augmented.batches([[0, 1, 2, 3, 4, 5]], seed=1)) for _ in range(2))
        assert torch.equal(one[0][0], two[0][0])
        ((crops, _),) = plain.batches([[0, 1, 2, 3, 4, 5]], seed=1)
        assert crops.shape == one[0][0].shape and not torch.equal(crops, one[0][0])
        assert name not in str(val.images.transform).lower()

    def test_a_missing_folder(self, cfg, tmp_path):
        with pytest.raises(UserError, match=r"^DATA.ROOT: .*train"):
            open_data(of_folder(cfg, tmp_path))

    def test_other_classes_in_validation(self, cfg, folder):
        (folder / "val" / "c").rename(folder / "val" / "d")
        with pytest.raises(UserError, match="train and val differ in classes, as in 'c'$"):
            open_data(of_folder(cfg, folder))

    def test_a_damaged_image_is_named(self, cfg, folder):
        (folder / "train" / "b" / "1.png").write_bytes(b"no image")
        train, _ = open_data(of_folder(cfg, folder))
        with pytest.raises(UserError, match=r"^\S+/b/1.png: "):
            list(train.batches([[0, 2]], seed=0))

    def test_a_training_says_how_fast_images_are_decoded(self, cfg, folder, tmp_path, capsys):
        settings = "SOLVER.IMS_PER_WORKER", 3, "SOLVER.EPOCHS", 2, "SOLVER.WARMUP_EPOCHS", 1.0
        train(of_folder(cfg, folder, "OUTPUT_DIR", tmp_path / "run", *settings))
        (line,) = [x for x in capsys.readouterr().out.splitlines() if " decodes " in x]
        found = re.fullmatch(
            r"one process decodes (\d+) images a second; "
            r"DATA.NUM_WORKERS is 0, for each of 1 processes",
            line,
        )
        assert found and int(found[1]) > 0


class TestLoading:
    @pytest.fixture
    def clock(self, monkeypatch):
        """A clock that stands still, unless clock[0] is set on."""
        now = [0.0]
        monkeypatch.setattr(loading.time, "perf_counter", lambda: now[0])
        return now

    def test_the_rate_is_of_images_tried_for_a_short_time(self, clock):
        class Slow(list):
            def __getitem__(self, index):
                clock[0] += 0.125

        assert loading.decoding_rate(Slow(range(100))) == 8
        assert clock[0] == 0.5  # after 4 images
        assert loading.decoding_rate(Slow(range(2))) == 8

    def test_much_waiting_is_said_once_and_not_of_the_start(self, clock):
        def slow():
            while True:
                clock[0] += 0.3
                yield "batch"

        batches, found = slow(), loading.Loading(2)

        def interval(seconds):
            assert [found.take(batches) for _ in range(2)] == ["batch"] * 2
            return found.hint(seconds)

        assert interval(1.0) == ""  # the start: 60 %
        assert interval(10.0) == ""
        expected = "60% of the time is waiting for images: raise DATA.NUM_WORKERS (it is 2, and"
        assert interval(1.0).startswith(expected)
        assert interval(1.0) == ""
