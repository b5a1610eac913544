"""Training: resuming, data, running statistics, and what is refused before anything starts."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import default_setup
from detectron2.evaluation import COCOEvaluator
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import DataLoader

from evonorm import build_norm_act
from evonorm_d2 import running_statistics
from evonorm_d2 import train as training
from evonorm_d2.check_run import check_run
from evonorm_d2.data import register_digits
from evonorm_d2.evaluators import build_evaluator
from evonorm_d2.loader import Mapper, TrainLoader, build_test_loader, check_names, lsj_arguments
from evonorm_d2.run_config import load_config
from evonorm_d2.train import summary
from evonorm_d2.trainer import Trainer
from evonorm_runs.errors import UserError, one_line, user_error_line, user_errors


@pytest.fixture(autouse=True)
def digits(digits_root):
    register_digits(digits_root)


@pytest.fixture
def config(tiny_run, tmp_path):
    def make(*overrides, norm="EvoNormB0"):
        file, values = tiny_run(norm, "OUTPUT_DIR", tmp_path / "run", *overrides)
        return load_config(file, values)

    return make


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def count_kept(function):
    """How many tensors hooks around a function see; those of `recompute` hide theirs from them."""
    seen = []
    with saved_tensors_hooks(lambda tensor: seen.append(None) or tensor, lambda tensor: tensor):
        function()
    return len(seen)


def test_outputs_computed_again_change_nothing(config, tmp_path):
    found, kept = [], []
    for again in (False, True):
        folder = tmp_path / str(again)
        changes = ("MODEL.EVONORM.RECOMPUTE", again, "SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 0)
        cfg = config(*changes, "SOLVER.EMA_DECAY", 0.5, "SEED", 1, "OUTPUT_DIR", folder)
        default_setup(cfg, None)
        kept.append(count_kept(partial(training.train, cfg)))
        state = torch.load(folder / "model_final.pth", weights_only=True)
        found.append({**state["model"], **state["ema"]})
    assert kept[0] and not kept[1]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


class TestResume:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "overrides",
        [
            # What is evaluated and recomputed on the way must not disturb the generators.
            ("TEST.EVAL_PERIOD", 3, "TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2),
            ("DATALOADER.ASPECT_RATIO_GROUPING", False, "DATASETS.TEST", "()", "SEED", -1),
        ],
    )
    def test_a_resumed_run_equals_an_uninterrupted_one(self, config, tmp_path, overrides, equal):
        common = ("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 3, "INPUT.RANDOM_FLIP")
        overrides = (*common, "horizontal", *overrides)
        states = []
        for folder in ("whole", "resumed"):
            (tmp_path / folder).mkdir()
            if states:  # as if the first run had been killed after three steps
                shutil.copy(tmp_path / "whole" / "model_0000002.pth", tmp_path / folder)
                (tmp_path / folder / "last_checkpoint").write_text("model_0000002.pth")
            cfg = config(*overrides, "OUTPUT_DIR", tmp_path / folder)
            default_setup(cfg, None)
            random.seed(len(states))  # another process, other numbers drawn before it begins
            np.random.seed(len(states))
            torch.manual_seed(len(states))
            training.train(cfg, resume=True)
            states.append(torch.load(tmp_path / folder / "model_final.pth", weights_only=True))
        whole, resumed = states
        assert whole["iteration"] == 5
        assert whole["trainer"]["_trainer"]["optimizer"]["state"]  # momenta are in it
        assert equal(whole["random"], resumed["random"])
        assert equal(whole["model"], resumed["model"])
        assert equal(whole["trainer"], resumed["trainer"])

    @pytest.mark.slow
    def test_a_run_killed_before_its_last_file_ends_when_it_goes_on(self, config, tmp_path):
        """After the checkpoint of its last iteration, before model_final.pth and the evaluation."""
        cfg = config("SOLVER.MAX_ITER", 4)
        folder = tmp_path / "run"
        folder.mkdir()
        training.train(cfg)
        assert lines(folder)[-1].keys() >= {"bbox/AP", "total_loss"}
        whole = torch.load(folder / "model_final.pth", weights_only=True)["model"]
        (folder / "model_final.pth").unlink()
        (folder / "last_checkpoint").write_text("model_0000003.pth")
        losses = [line for line in lines(folder) if line["iteration"] < 3]
        half = json.dumps({"iteration": 3, "total_loss": 1.0})[:-5]
        text = "".join(json.dumps(line) + "\n" for line in losses)
        (folder / "metrics.json").write_text(text + half)
        results = training.train(cfg, resume=True)
        found = torch.load(folder / "model_final.pth", weights_only=True)
        assert found["iteration"] == 3 and found["model"].keys() == whole.keys()
        assert all(torch.equal(x, whole[key]) for key, x in found["model"].items())
        *before, last = lines(folder)
        assert before == losses and last["iteration"] == 3
        assert last["bbox/AP"] == pytest.approx(results["bbox"]["AP"], nan_ok=True)

    @pytest.mark.slow
    def test_evaluations_are_written_at_once(self, config, tmp_path, monkeypatch):
        """At their iteration, not with the losses of every twentieth; a missed one is made up."""
        cfg = config("SOLVER.MAX_ITER", 5, "TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 2)
        (tmp_path / "run").mkdir()
        seen = []
        monkeypatch.setattr(training.Trainer, "test", lambda *_: {"bbox": {"AP": 7.0}})
        step = training.Trainer.run_step

        def run_step(self):
            evaluated = [line["iteration"] for line in lines(tmp_path / "run") if "bbox/AP" in line]
            seen.append((self.iter, evaluated))
            step(self)

        monkeypatch.setattr(training.Trainer, "run_step", run_step)
        training.train(cfg)
        assert seen == [(0, []), (1, []), (2, [1]), (3, [1]), (4, [1, 3])]
        (tmp_path / "run/last_checkpoint").write_text("model_0000003.pth")
        (tmp_path / "run/metrics.json").write_text('{"iteration": 1, "bbox/AP": 7.0}\n')
        seen.clear()
        training.train(cfg, resume=True)
        assert seen == [(4, [1, 3])]

    @pytest.mark.parametrize("grouping", [True, False])
    def test_the_loader_starts_at_any_batch(self, config, grouping):
        loader = TrainLoader(config("DATALOADER.ASPECT_RATIO_GROUPING", grouping))
        ids = [[x["image_id"] for x in batch] for batch in itertools.islice(loader, 7)]
        assert all(sorted(sum(ids[i : i + 3], [])) == [1, 2, 3, 4, 5, 6] for i in (0, 3))  # epochs
        other = TrainLoader(config("DATALOADER.ASPECT_RATIO_GROUPING", grouping, "SEED", 7))
        other.load_state_dict(loader.state_dict())
        other.start = 4
        assert [[x["image_id"] for x in batch] for batch in itertools.islice(other, 3)] == ids[4:]

    def test_starting_the_loader_does_not_move_the_global_generator(self, config):
        loader = TrainLoader(config())
        state = torch.get_rng_state()
        next(iter(loader))
        assert torch.equal(torch.get_rng_state(), state)


class TestLargeScaleJitter:
    SIZE = 48

    @pytest.fixture
    def mapped(self, config):
        """Images 64x64 jittered by a scale in [low, high] of SIZE, and their COCO annotations."""

        def make(low, high, mask_format="bitmask"):
            cfg = config(
                *("INPUT.LSJ.ENABLED", True, "INPUT.LSJ.SIZE", self.SIZE),
                *("INPUT.LSJ.MIN_SCALE", low, "INPUT.LSJ.MAX_SCALE", high),
            )
            np.random.seed(0)
            loader = TrainLoader(cfg)
            return sum(itertools.islice(loader, 3), [])

        return make

    @pytest.mark.parametrize("low, high", [(0.5, 0.5), (1.0, 2.0), (0.1, 2.0)])
    def test_images_have_one_size_and_boxes_are_tight(self, mapped, low, high):
        for x in mapped(low, high):
            assert x["image"].shape == (3, self.SIZE, self.SIZE)
            masks = x["instances"].gt_masks.tensor.numpy()
            for mask, box in zip(masks, x["instances"].gt_boxes.tensor.numpy()):
                rows, columns = np.nonzero(mask)
                tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                np.testing.assert_array_equal(box, tight)

    def test_what_is_padded_is_inside_no_mask(self, mapped):
        for x in mapped(0.5, 0.5):
            scaled = self.SIZE // 2
            assert (x["image"][:, scaled:] == 128).all() and (
                x["image"][:, :, scaled:] == 128
            ).all()
            masks = x["instances"].gt_masks.tensor
            assert masks.any()
            assert not masks[:, scaled:].any() and not masks[:, :, scaled:].any()

    def test_off_by_default_and_not_together_with_another_crop(self, config):
        assert lsj_arguments(config()) == {}
        with pytest.raises(ValueError, match="INPUT.CROP and INPUT.LSJ"):
            lsj_arguments(config("INPUT.LSJ.ENABLED", True, "INPUT.CROP.ENABLED", True))


class TestRunningStatistics:
    def test_precise_statistics_are_the_mean_of_the_batches(self):
        model = nn.Sequential(build_norm_act("EvoNormB0", 3), nn.BatchNorm2d(3))
        batches = list(torch.randn(4, 5, 3, 6, 6, dtype=torch.float64).float() * 3)
        running_statistics.recompute_statistics(model, batches)
        expected = np.mean([b.numpy().astype("f8").var((0, 2, 3)) for b in batches], 0)
        np.testing.assert_allclose(model[0].running_var.numpy(), expected, rtol=1e-5)
        # A stock BatchNorm has a hook of its own, which has run before.
        assert torch.equal(model[1].running_var, torch.ones(3))
        assert model[1].momentum == 0.1

    @pytest.mark.parametrize("enabled", [True, False])
    def test_when_they_are_taken(self, config, enabled, monkeypatch, tmp_path):
        taken = []
        monkeypatch.setattr(
            running_statistics,
            "recompute_statistics",
            lambda model, batches: taken.append(len(list(batches))),
        )
        trainer = Trainer(
            config(
                *("TEST.PRECISE_BN.ENABLED", enabled, "TEST.PRECISE_BN.NUM_ITER", 2),
                *("TEST.EVAL_PERIOD", 2, "SOLVER.MAX_ITER", 5, "OUTPUT_DIR", tmp_path),
            )
        )
        kinds = [type(hook).__name__ for hook in trainer._hooks]
        assert kinds.index("RunningStatistics") < kinds.index("PeriodicCheckpointer")
        assert kinds.index("RunningStatistics") < kinds.index("Evaluation")
        hook = trainer._hooks[kinds.index("RunningStatistics")]
        for trainer.iter in range(5):
            hook.after_step()
        assert taken == ([2, 2, 2] if enabled else [])  # after steps 2, 4 and 5

    def test_averaged_over_processes(self, tmp_path):
        mp.start_processes(_average, (str(tmp_path),), nprocs=2, start_method="fork")
        for rank in (0, 1):
            assert torch.load(tmp_path / f"{rank}.pth").tolist() == [2.0, 2.0, 2.0]


def _average(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    layer = build_norm_act("EvoNormB0", 3)
    layer.running_var.fill_(1 + 2 * rank)
    running_statistics.average_over_processes([layer])
    torch.save(layer.running_var, f"{folder}/{rank}.pth")


class TestData:
    @pytest.fixture
    def copy(self, digits_root, tmp_path):
        """A copy of the digits to damage, registered; returns (json file, an image)."""
        shutil.copytree(digits_root / "digits", tmp_path / "digits")
        register_digits(tmp_path)
        folder = tmp_path / "digits"
        return folder / "annotations/instances_train.json", folder / "train/000000000001.png"

    def refusal(self, config):
        with pytest.raises(UserError) as error:
            for _ in itertools.islice(TrainLoader(config()), 3):
                pass
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_missing_json(self, config, copy):
        copy[0].unlink()
        assert str(copy[0]) in self.refusal(config)
        with pytest.raises(UserError, match="make_digits.py"):
            check_names(["digits_train"])

    def test_missing_folder(self, copy):
        shutil.rmtree(copy[1].parent)
        with pytest.raises(UserError, match=f"digits_train: {copy[1].parent} does not exist"):
            check_names(["digits_val", "digits_train"])

    def test_unknown_name(self):
        with pytest.raises(UserError, match="'digit_train'; close to it are digits_train"):
            check_names(["digit_train"])

    @pytest.mark.parametrize(
        "content, reason",
        [
            ('{"images": [', "broken JSON"),
            ("[]", "lacks categories and images"),
            ('{"images": [], "annotations": []}', "lacks categories"),
            ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "0"}]}', ""),
            ('{"images": [{"id": 1}], "categories": CATEGORIES}', "KeyError: file_name"),
            ("3", "lacks categories and images"),
        ],
    )
    def test_broken_json(self, config, copy, content, reason):
        categories = json.dumps(json.loads(copy[0].read_text())["categories"])
        copy[0].write_text(content.replace("CATEGORIES", categories))
        line = self.refusal(config)
        assert str(copy[0]) in line and reason in line

    def test_missing_image(self, config, copy):
        copy[1].unlink()
        assert str(copy[1]) in self.refusal(config)

    @pytest.mark.parametrize("content", [b"", b"not an image", None])
    def test_broken_image(self, config, copy, content):
        whole = copy[1].read_bytes()
        copy[1].write_bytes(whole[: len(whole) // 2] if content is None else content)
        assert self.refusal(config).startswith(f"{copy[1]}: ")

    def test_broken_image_in_evaluation(self, config, copy):
        image = copy[1].parents[1] / "val" / copy[1].name
        image.write_bytes(b"not an image")
        with pytest.raises(UserError, match=str(image)):
            list(build_test_loader(config(), "digits_val"))

    def test_masks_in_another_format_than_the_config_says(self, config):
        mapper = Mapper(config("INPUT.MASK_FORMAT", "polygon"), True)
        loader = TrainLoader(config())
        with pytest.raises(UserError, match="polygon"):
            mapper(loader._arguments["dataset"][0])


class TestErrors:
    def test_from_a_worker_of_a_data_loader(self):
        loader = DataLoader(_Broken(), num_workers=1)
        with pytest.raises(UserError) as error:
            list(loader)
        assert user_error_line(error.value) == "a.png: cannot be read"

    def test_from_another_process(self):
        with pytest.raises(mp.ProcessRaisedException) as error:
            mp.start_processes(_raise, (UserError("a.png: cannot be read"),), start_method="fork")
        assert user_error_line(error.value) == "a.png: cannot be read"
        with pytest.raises(mp.ProcessRaisedException) as error:
            mp.start_processes(_raise, (KeyError("a fault"),), start_method="fork")
        assert user_error_line(error.value) is None

    def test_lines(self):
        assert user_error_line(UserError("plain: text")) == "plain: text"
        assert user_error_line(ValueError("a fault")) is None
        assert one_line(KeyError("no key\n here")) == "no key here"
        assert one_line(AssertionError()) == "AssertionError"
        with pytest.raises(UserError, match=r"^file: text$"), user_errors(OSError, prefix="file: "):
            raise OSError("text")
        with pytest.raises(KeyError), user_errors(OSError):
            raise KeyError("text")


class _Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("a.png: cannot be read") from OSError("UserError: not this")


def _raise(rank, error):
    raise error


class TestBeforehand:
    @pytest.mark.parametrize(
        "overrides, line",
        [
            (("MODEL.RESNETS.NORM", "EvoNormS0"), "MODEL.RESNETS.NORM 'EvoNormS0' (was 'EvoNormB0"),
            (("MODEL.EVONORM.EPS", 0.1), "MODEL.EVONORM.EPS 0.1 (was None"),
            (("SEED", 7), "SEED 7 (was 0"),
            (("SOLVER.IMS_PER_BATCH", 1), "SOLVER.IMS_PER_BATCH 1 (was 2"),
            (("DATASETS.TRAIN", "('digits_val',)"), "DATASETS.TRAIN ('digits_val',) (was"),
            (("SOLVER.BASE_LR", 1.0), "SOLVER.BASE_LR 1.0 (was"),
        ],
    )
    def test_another_run_is_not_gone_on_with(self, config, tmp_path, overrides, line):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "model_0000001.pth").touch()
        file = tmp_path / "run" / "config.yaml"
        file.write_text(config().dump())
        check_run(config(), resume=True, eval_only=False)
        check_run(config("SOLVER.MAX_ITER", 9), resume=True, eval_only=False)
        check_run(config(*overrides), resume=True, eval_only=True)
        with pytest.raises(UserError) as error:
            check_run(config(*overrides), resume=True, eval_only=False)
        assert str(error.value).startswith(f"{file} is of a run with other settings: ")
        assert line in str(error.value)

    @pytest.mark.parametrize(
        "overrides, arguments, line",
        [
            ((), {"eval_only": True}, "--eval-only: nothing to evaluate"),
            ((), {"num_gpus": 2}, "--num-gpus 2: PyTorch sees 0"),
            (
                ("TEST.AUG.ENABLED", True, "MODEL.META_ARCHITECTURE", "RetinaNet"),
                {},
                "TEST.AUG.ENABLED is True, but .* takes a MODEL.META_ARCHITECTURE GeneralizedRCNN",
            ),
            (("DATASETS.TRAIN", "('none',)"), {}, "no data set is named 'none'"),
        ],
    )
    def test_refusals(self, config, overrides, arguments, line):
        with pytest.raises(UserError, match=line):
            check_run(config(*overrides), **{"resume": False, "eval_only": False, **arguments})

    def test_unknown_component(self, config):
        with pytest.raises(UserError, match="'Nothing'.*META_ARCH"):
            training.train(config("MODEL.META_ARCHITECTURE", "Nothing"))


class TestEvaluation:
    def test_results_of_several_data_sets_are_kept_apart(self, config, tmp_path):
        cfg = config("DATASETS.TEST", "('digits_val', 'digits_train')")
        for name in cfg.DATASETS.TEST:
            (evaluator,) = build_evaluator(cfg, name)._evaluators
            assert isinstance(evaluator, COCOEvaluator)
            assert evaluator._output_dir == str(tmp_path / "run" / "inference" / name)

    def test_summary(self):
        results = {"bbox": {"AP": 43.61, "AP50": 60.0}, "segm": {"AP": 39.36}}
        assert summary(results) == "box AP 43.6, mask AP 39.4"
        assert summary({"a": results, "b": {"sem_seg": {"mIoU": 12.0}}}) == (
            "a box AP 43.6, a mask AP 39.4, b sem_seg mIoU 12.0"
        )

    def test_divergence_is_one_line(self, config, monkeypatch, caplog):
        trainer = Trainer(config("SOLVER.MAX_ITER", 4))

        def diverge():
            raise FloatingPointError("Loss became infinite\nloss_dict = {}")

        monkeypatch.setattr(trainer._trainer, "run_step", diverge)
        with pytest.raises(UserError, match="SOLVER.BASE_LR: Loss became infinite loss_dict"):
            trainer.run_step()
