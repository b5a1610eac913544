"""Training of a classifier: workers, learning rates, checkpoints, and what can go wrong."""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from evonorm_classifier import trainer
from evonorm_classifier.config import load_config
from evonorm_classifier.data import DigitsSet, worker_batches
from evonorm_classifier.export import read_run
from evonorm_classifier.models import build_model
from evonorm_classifier.run import ClassifierRun
from evonorm_classifier.solver import build_optimizer, learning_rate, moving_average
from evonorm_classifier.trainer import train
from evonorm_runs.errors import UserError
from evonorm_runs.images.digits import make_digits

CONFIGS = Path(__file__).parents[2] / "configs" / "classification"


def lines(folder):
    """The log without times."""
    found = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pth", weights_only=True)


class TestWorkers:
    @pytest.mark.parametrize("norm", ["BN-ReLU", "EvoNormB0", "RS+rej", "EvoNormS0"])
    def test_a_process_with_two_workers_does_what_two_models_with_averaged_gradients_do(
        self, tiny_cfg, noise, tmp_path, norm
    ):
        overrides = ("MODEL.NORM", norm, "SOLVER.WORKERS", 2, "SOLVER.EPOCHS", 2)
        # A power of two, and a rate at which rounding does not grow.
        cfg = tiny_cfg(*overrides, "SOLVER.BASE_LR", 0.125, "SOLVER.WEIGHT_DECAY", 0.0625)
        train(cfg)
        ours = checkpoint(tmp_path / "run")["model"]

        torch.manual_seed(cfg.SEED)
        models = [build_model(cfg, 10)]
        models.append(copy.deepcopy(models[0]))  # statistics of its own
        optimizers = [
            torch.optim.SGD(
                [
                    {"params": [p for p in m.parameters() if p.dim() > 1], "weight_decay": 0.0625},
                    {"params": [p for p in m.parameters() if p.dim() == 1]},
                ],
                lr=0.1,
                momentum=0.9,
                nesterov=True,
            )
            for m in models
        ]
        step = 0
        for epoch in (1, 2):
            batches = list(worker_batches(22, epoch, cfg, 0, 1))
            for pair in zip(batches[::2], batches[1::2]):
                for model, indices in zip(models, pair):
                    model.zero_grad()
                    scores = model(noise[0].images[indices])
                    F.cross_entropy(scores, noise[0].labels[indices]).backward()
                for a, b in zip(*(m.parameters() for m in models)):
                    a.grad = b.grad = (a.grad + b.grad) / 2
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(cfg, step, 2)
                    optimizer.step()
                step += 1
        one, two = (m.state_dict() for m in models)
        assert step == 4 and ours.keys() == one.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, (one[key] + two[key]) / 2, msg=key)
        if norm != "EvoNormS0":
            statistics = [key for key in one if "running" in key]
            assert any(not torch.equal(one[key], two[key]) for key in statistics)

    @pytest.mark.parametrize("norm, alike", [("BN-ReLU", False), ("GN-ReLU", True)])
    def test_statistics_are_a_workers_own(self, tiny_cfg, noise, tmp_path, norm, alike):
        results = []
        for workers, images in ((1, 8), (2, 4)):
            folder = tmp_path / str(workers)
            values = ("SOLVER.WORKERS", workers, "SOLVER.IMS_PER_WORKER", images)
            train(tiny_cfg("MODEL.NORM", norm, *values, "SOLVER.EPOCHS", 1, "OUTPUT_DIR", folder))
            results.append(lines(folder)[0]["loss"])
        assert (abs(results[0] - results[1]) < 1e-6) is alike

    def test_dropout_draws_for_each_step_and_worker(self, tiny_cfg):
        seeds = []
        cfg = tiny_cfg("SOLVER.WORKERS", 2)
        run = ClassifierRun(cfg, torch.device("cpu"), 22, DigitsSet.classes)
        run.seed = seeds.append
        batch = torch.zeros(4, 3, 32, 32), torch.zeros(4).long()
        for step in (1, 2):
            trainer.train_step(run, step, iter([batch] * 2))
        assert len(set(seeds)) == 4


class TestLearningRate:
    def test_is_scaled_to_the_images_per_step(self):
        file = str(CONFIGS / "imagenet_resnet50.yaml")
        for images, workers, peak in ((128, 8, 0.4), (4, 8, 0.0125), (128, 2, 0.1)):
            settings = ["SOLVER.IMS_PER_WORKER", str(images), "SOLVER.WORKERS", str(workers)]
            cfg = load_config(file, ["DEVICE", "cpu", *settings])
            assert math.isclose(learning_rate(cfg, 10 * 100, 100), peak)

    def test_resnets_multi_stage_schedule(self):
        # Goyal et al. 2017, for 1024 images: 0.4, divided by 10 after 30, 60 and 80 epochs.
        cfg = load_config(str(CONFIGS / "imagenet_resnet50.yaml"), ["DEVICE", "cpu"])
        rates = [learning_rate(cfg, step, 1251) for step in range(90 * 1251)]
        assert math.isclose(rates[0], 0.4 / (5 * 1251)) and math.isclose(rates[5 * 1251 - 1], 0.4)
        rise = [b - a for a, b in zip(rates[: 5 * 1251 - 1], rates[1:])]
        assert max(rise) - min(rise) < 1e-12
        expected = [(5, 30, 0.4), (30, 60, 0.04), (60, 80, 0.004), (80, 90, 0.0004)]
        for first, last, rate in expected:
            stage = rates[first * 1251 : last * 1251]
            assert math.isclose(min(stage), rate) and math.isclose(max(stage), rate)

    def test_cosine_schedule_is_pytorchs(self):
        settings = ["DEVICE", "cpu", "SOLVER.WARMUP_EPOCHS", "2.0", "SOLVER.EPOCHS", "12"]
        cfg = load_config(str(CONFIGS / "imagenet_mobilenet_v2.yaml"), settings)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.03 * 128 * 32 / 256)
        stock = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10 * 7)
        for step in range(2 * 7, 12 * 7):
            assert math.isclose(learning_rate(cfg, step, 7), stock.get_last_lr()[0], abs_tol=1e-9)
            optimizer.step()
            stock.step()

    def test_no_warm_up(self, tiny_cfg):
        cfg = tiny_cfg("SOLVER.WARMUP_EPOCHS", 0.0)
        assert math.isclose(learning_rate(cfg, 0, 5), 0.1 * 4 / 128)

    def test_stairs_are_counted_from_the_first_step(self, tiny_cfg):
        settings = ("SOLVER.STAIR_EPOCHS", 2.4, "SOLVER.WARMUP_EPOCHS", 5.0, "SOLVER.EPOCHS", 350)
        cfg = tiny_cfg("SOLVER.SCHEDULE", "staircase", *settings)
        peak = 0.1 * 4 / 128
        rates = [learning_rate(cfg, step, 5) for step in range(40)]
        assert rates[:25] == pytest.approx([peak * (step + 1) / 25 for step in range(25)])
        # A stair is 12 steps; the first three were of use to nobody.
        expected = [peak * 0.97 ** (2 if step < 36 else 3) for step in range(25, 40)]
        assert rates[25:] == pytest.approx(expected)


class TestSolver:
    def test_rmsprop_is_tensorflows(self, tiny_cfg):
        settings = ("SOLVER.OPTIMIZER", "rmsprop", "SOLVER.RMSPROP_EPS", 0.1)
        cfg = tiny_cfg(*settings, "SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.RMSPROP_RHO", 0.8)
        generator = torch.Generator().manual_seed(0)
        model = nn.Linear(3, 2).double()
        optimizer = build_optimizer(cfg, model)
        w, b = model.weight.detach().clone(), model.bias.detach().clone()
        state = {0: [torch.ones_like(w), torch.zeros_like(w)]}
        state[1] = [torch.ones_like(b), torch.zeros_like(b)]
        for lr in (0.3, 0.1, 0.2):
            for group in optimizer.param_groups:
                group["lr"] = lr
            for i, (p, x, decay) in enumerate(((model.weight, w, 0.5), (model.bias, b, 0.0))):
                p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                g = p.grad + decay * x
                state[i][0] = 0.8 * state[i][0] + 0.2 * g**2
                state[i][1] = 0.9 * state[i][1] + lr * g / (state[i][0] + 0.1).sqrt()
                x -= state[i][1]
            optimizer.step()
            torch.testing.assert_close(model.weight.detach(), w)
            torch.testing.assert_close(model.bias.detach(), b)

    def test_without_timm(self, tiny_cfg, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm.optim", None)
        with pytest.raises(UserError, match="^SOLVER.OPTIMIZER is rmsprop, which timm has: pip "):
            build_optimizer(tiny_cfg("SOLVER.OPTIMIZER", "rmsprop"), nn.Linear(1, 1))

    def test_the_moving_average_is_tensorflows(self):
        model = nn.BatchNorm1d(2).double()  # parameters, statistics and a counter
        averaged = moving_average(model, 0.4)
        weight, mean = model.weight.detach().clone(), model.running_mean.clone()
        for step in range(6):
            with torch.no_grad():
                model.weight.add_(step + 1.0)
            model(torch.arange(8.0, dtype=torch.float64).reshape(4, 2) * step)
            averaged.update_parameters(model)
            decay = min(0.4, (1 + step) / (10 + step))
            weight = decay * weight + (1 - decay) * model.weight.detach()
            mean = decay * mean + (1 - decay) * model.running_mean
            torch.testing.assert_close(averaged.module.weight.detach(), weight)
            torch.testing.assert_close(averaged.module.running_mean, mean)
        assert averaged.module.num_batches_tracked == 6


class TestRuns:
    @pytest.mark.parametrize(
        "overrides",
        [
            ("MODEL.NORM", "EvoNormB0", "SOLVER.WORKERS", 2),
            ("MODEL.NAME", "mobilenet_v2", "SOLVER.LABEL_SMOOTHING", 0.1),  # dropout
            ("SOLVER.AMP", True, "SOLVER.CHANNELS_LAST", True, "SOLVER.SCHEDULE", "multistep"),
            ("SOLVER.OPTIMIZER", "rmsprop", "SOLVER.EMA", 0.5, "SOLVER.SCHEDULE", "staircase"),
        ],
    )
    def test_a_resumed_run_equals_an_uninterrupted_one(
        self, tiny_cfg, noise, tmp_path, monkeypatch, overrides, equal
    ):
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        expected = train(tiny_cfg(*overrides, "OUTPUT_DIR", whole))

        class Killed(Exception):
            pass

        def save(run):  # killed after the second epoch's line, before its checkpoint is there
            if run.epoch == 2:
                raise Killed
            original(run)

        original = ClassifierRun.save
        monkeypatch.setattr(ClassifierRun, "save", save)
        with pytest.raises(Killed):
            train(tiny_cfg(*overrides, "OUTPUT_DIR", killed))
        monkeypatch.undo()
        monkeypatch.setattr(trainer, "open_data", lambda cfg: noise)
        with open(killed / "metrics.json", "a") as file:
            file.write('{"step": 12, "lo')
        assert checkpoint(killed)["epoch"] == 1
        torch.manual_seed(11)
        assert train(tiny_cfg(*overrides, "OUTPUT_DIR", killed), resume=True) == expected
        a, b = checkpoint(whole), checkpoint(killed)
        assert a.pop("config") != b.pop("config")  # they name their folders
        assert equal(a, b)
        assert lines(whole) == lines(killed)

    def test_what_is_written(self, tiny_cfg, noise, tmp_path, fake_wandb):
        cfg = tiny_cfg("WANDB_PROJECT", "mine")
        results = train(cfg)
        log = lines(tmp_path / "run")
        # Epochs of five steps, a line every two and at an epoch's end.
        assert [line["step"] for line in log if "loss" in line] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
        ends = [line for line in log if "accuracy" in line]
        assert [(line["step"], line["epoch"]) for line in ends] == [(5, 1), (10, 2), (15, 3)]
        assert {key: ends[-1][key] for key in results} == results
        assert log[0]["lr"] == learning_rate(cfg, 1, 5)
        written = load_config(str(tmp_path / "run" / "config.yaml"))
        assert written == cfg
        logged = [{"step": step, **values} for _, step, values in fake_wandb[1:-1]]
        plain = [json.loads(x) for x in (tmp_path / "run/metrics.json").read_text().splitlines()]
        assert logged == plain

    def test_results_are_those_of_a_plain_loop_over_the_checkpoint(self, tiny_cfg, noise, tmp_path):
        cfg = tiny_cfg("SOLVER.BASE_LR", 1.0)
        results = train(cfg)
        model = build_model(cfg, 10)
        model.load_state_dict(checkpoint(tmp_path / "run")["model"])
        scores = model.eval()(noise[1].images)
        right = (scores.argmax(1) == noise[1].labels).sum().item()
        assert math.isclose(results["accuracy"], 100 * right / 18)
        # A label is among the best five if fewer than five scores are higher.
        higher = (scores > scores.gather(1, noise[1].labels[:, None])).sum(1)
        assert math.isclose(results["top5_accuracy"], 100 * (higher < 5).sum().item() / 18)
        loss = F.cross_entropy(scores, noise[1].labels).item()
        assert math.isclose(results["val_loss"], loss, rel_tol=1e-5)

    def test_mistakes_are_those_of_a_plain_loop_over_the_checkpoint(
        self, tiny_cfg, noise, tmp_path
    ):
        cfg, run = tiny_cfg("SOLVER.BASE_LR", 1.0), tmp_path / "run"
        train(cfg)
        model = build_model(cfg, 10)
        model.load_state_dict(checkpoint(run)["model"])
        (images, labels), matrix, wrong = (noise[1].images, noise[1].labels), {}, {}
        shares = model.eval()(images).softmax(1)
        for i, (share, label) in enumerate(zip(shares.tolist(), labels.tolist())):
            answer = share.index(max(share))
            matrix[label, answer] = matrix.get((label, answer), 0) + 1
            if answer != label:
                wrong[i] = (label, answer, max(share))
        found = json.loads((run / "confusion.json").read_text())
        assert found["classes"] == noise[1].classes
        assert {(a, b): n for a, b, n in found["counts"]} == matrix
        assert [row[0] for row in found["wrong"]] == sorted(wrong, key=lambda i: -wrong[i][2])
        for i, *others in found["wrong"]:
            assert others == [*wrong[i][:2], pytest.approx(wrong[i][2], rel=1e-5)]
        # The first image of the picture, enlarged.
        sheet = Image.open(run / "mistakes.png")
        assert sheet.size == (6 * 144, -(-len(wrong) // 6) * 174)
        first = noise[1].images[found["wrong"][0][0]] * 127.5 + 127.5
        plain = Image.fromarray(first.round().byte().permute(1, 2, 0).numpy()).resize((140, 140), 0)
        assert sheet.crop((2, 2, 142, 142)).tobytes() == plain.tobytes()

        before = (run / "confusion.json").read_bytes()
        (run / "confusion.json").unlink()  # as if the run had been killed before it was written
        train(cfg, resume=True)
        assert (run / "confusion.json").read_bytes() == before

    def test_averaged_weights_are_those_that_are_evaluated(self, tiny_cfg, noise, tmp_path):
        cfg = tiny_cfg("SOLVER.BASE_LR", 4.0, "SOLVER.EMA", 0.99, "SOLVER.SCHEDULE", "multistep")
        results = train(cfg)
        losses = {}
        for kind in ("model", "averaged"):
            model = build_model(cfg, 10)
            model.load_state_dict(checkpoint(tmp_path / "run")[kind])
            losses[kind] = F.cross_entropy(model.eval()(noise[1].images), noise[1].labels).item()
        assert math.isclose(results["val_loss"], losses["averaged"], rel_tol=1e-5)
        assert not math.isclose(results["val_loss"], losses["model"], rel_tol=1e-3)

    def test_averaged_weights_are_those_that_a_detector_gets(self, tiny_cfg, noise, tmp_path):
        small = "MODEL.NAME", "resnet18", "MODEL.WIDTH", 0.125, "MODEL.NUM_GROUPS", 0
        train(tiny_cfg(*small, "SOLVER.EMA", 0.9, "SOLVER.EPOCHS", 1, "SOLVER.WARMUP_EPOCHS", 0.0))
        state, weights = checkpoint(tmp_path / "run"), read_run(tmp_path / "run").weights
        assert state["averaged"].keys() == weights.keys()
        assert all(torch.equal(weights[key], x) for key, x in state["averaged"].items())
        assert not all(torch.equal(weights[key], x) for key, x in state["model"].items())

    def test_train_accuracy_is_that_of_the_batches_as_they_were_taken(
        self, tiny_cfg, noise, monkeypatch
    ):
        seen = []
        original = trainer.hits

        def hits(scores, labels):
            seen.extend(original(scores, labels).tolist())
            return original(scores, labels)

        monkeypatch.setattr(trainer, "hits", hits)
        results = train(tiny_cfg("SOLVER.EPOCHS", 1, "SOLVER.BASE_LR", 1.0))
        assert len(seen) == 20 + 18
        assert math.isclose(results["train_accuracy"], 100 * sum(seen[:20]) / 20, abs_tol=1e-4)

    def test_only_kernels_decay(self, tiny_cfg):
        run = ClassifierRun(tiny_cfg(), torch.device("cpu"), 22, DigitsSet.classes)
        kernels = [m.weight for m in run.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        decayed, others = run.optimizer.param_groups
        assert decayed["weight_decay"] == 1e-4 and others["weight_decay"] == 0
        assert {id(p) for p in decayed["params"]} == {id(p) for p in kernels}
        total = len(decayed["params"]) + len(others["params"])
        assert total == len(list(run.model.parameters()))

    def test_biases_decay_too_if_a_key_says_so_but_no_norm_does(self, tiny_cfg):
        cfg = tiny_cfg("SOLVER.DECAY_BIASES", True, "MODEL.NAME", "efficientnet_b0")
        model = build_model(cfg, 10)
        decayed, others = build_optimizer(cfg, model).param_groups
        names = {id(p): name for name, p in model.named_parameters()}
        norms = {
            f"{path}.{key}"
            for path, m in model.named_modules()
            if hasattr(m, "norm_act")
            for key in ("weight", "bias")
        }
        assert {names[id(p)] for p in others["params"]} == norms
        assert {names[id(p)] for p in decayed["params"]} == set(names.values()) - norms
        assert "classifier.1.bias" not in norms

    def test_a_finished_run_gives_its_results_again(self, tiny_cfg, noise, tmp_path):
        results = train(tiny_cfg())
        before = lines(tmp_path / "run")
        assert train(tiny_cfg(), resume=True) == results
        assert lines(tmp_path / "run") == before
        (tmp_path / "run" / "metrics.json").unlink()
        assert train(tiny_cfg(), resume=True) == {}

    def test_digits_are_learnt(self, tiny_cfg, monkeypatch):
        (images, labels), val = make_digits("train", 32), make_digits("val", 32)
        sets = DigitsSet(images[::8], labels[::8]), DigitsSet(*val)
        monkeypatch.setattr(trainer, "open_data", lambda cfg: sets)
        settings = ("MODEL.WIDTH", 1.0, "SOLVER.IMS_PER_WORKER", 32, "SOLVER.LOG_PERIOD", 0)
        results = train(tiny_cfg(*settings, "SOLVER.BASE_LR", 0.8, "TEST.BATCH_SIZE", 256))
        assert results["accuracy"] > 80 and results["train_accuracy"] > 80


class TestWhatGoesWrong:
    @pytest.mark.parametrize("overrides", [(), ("SOLVER.LOG_PERIOD", 0)])
    def test_divergence(self, tiny_cfg, noise, tmp_path, overrides):
        with pytest.raises(UserError, match=r"^step \d+: diverged, .*lower SOLVER.BASE_LR$"):
            train(tiny_cfg("SOLVER.BASE_LR", 1e30, "MODEL.NORM", "GN-ReLU", *overrides))
        assert lines(tmp_path / "run")[-1]["diverged"] == 1
        assert not (tmp_path / "run" / "checkpoint.pth").exists()

    def test_weights_lost_in_an_epochs_last_step(self, tiny_cfg, noise, tmp_path, monkeypatch):
        original = trainer.train_step

        def step(run, step, batches):
            lr = original(run, step, batches)
            if step == 10:
                run.model.fc.bias.data[0] = math.inf
            return lr

        monkeypatch.setattr(trainer, "train_step", step)
        with pytest.raises(UserError, match="^step 10: diverged"):
            train(tiny_cfg())
        assert checkpoint(tmp_path / "run")["epoch"] == 1

    def test_more_images_than_there_are(self, tiny_cfg, noise):
        expected = "IMS_PER_WORKER 4 times SOLVER.WORKERS 6 is more than the 22 images there are"
        with pytest.raises(UserError, match=expected):
            train(tiny_cfg("SOLVER.WORKERS", 6))

    def test_another_run_is_not_overwritten(self, tiny_cfg, noise, tmp_path):
        train(tiny_cfg("SOLVER.EPOCHS", 1))
        before = (tmp_path / "run" / "checkpoint.pth").read_bytes()
        with pytest.raises(UserError, match=r"holds a run \(checkpoint.pth\): continue it with"):
            train(tiny_cfg("SOLVER.EPOCHS", 1))
        with pytest.raises(UserError, match=r"other settings: SOLVER.BASE_LR 0.3 \(was 0.1\)"):
            train(tiny_cfg("SOLVER.EPOCHS", 1, "SOLVER.BASE_LR", 0.3), resume=True)
        assert (tmp_path / "run" / "checkpoint.pth").read_bytes() == before

    def test_a_checkpoint_of_other_data(self, tiny_cfg, noise, monkeypatch):
        train(tiny_cfg("SOLVER.EPOCHS", 1))
        fewer = DigitsSet(torch.zeros(21, 3, 32, 32), torch.arange(21) % 10)
        monkeypatch.setattr(trainer, "open_data", lambda cfg: (fewer, fewer))
        with pytest.raises(UserError, match=r"on {'images': 22, .*; DATA has {'images': 21, "):
            train(tiny_cfg("SOLVER.EPOCHS", 1), resume=True)

    @pytest.mark.parametrize("content", [b"damaged", {"weights": 1}])
    def test_a_foreign_checkpoint(self, tiny_cfg, noise, tmp_path, content):
        path = tmp_path / "run" / "checkpoint.pth"
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(UserError, match=r"checkpoint.pth: (damaged, or )?not a checkpoint"):
            train(tiny_cfg(), resume=True)

    @pytest.mark.parametrize(
        "overrides, expected",
        [
            (("MODEL.NAME", "resnet9000"), "MODEL.NAME is 'resnet9000'; known are preact_resnet8,"),
            (
                ("MODEL.NORM", "EvoNormX0"),
                "MODEL.NORM: unknown norm-act 'EvoNormX0': did you mean 'EvoNorm",
            ),
            (("SOLVER.SCHEDULE", "steps"), "SOLVER.SCHEDULE is 'steps'; known are multistep, cos"),
            (("SOLVER.WORKERS", 0), "SOLVER.WORKERS is 0, but should be more than 0"),
            (("SOLVER.MOMENTUM", 1.0), r"SOLVER.MOMENTUM is 1.0, but should be in \[0, 1\)"),
            (("DATA.VARIANTS", 9), "DATA.VARIANTS is 9, but should be 1 to 8"),
            (("SOLVER.WARMUP_EPOCHS", "nan"), "KEY VALUE on the command line: Type mismatch"),
            (("SOLVER.NO_KEY", 1), "KEY VALUE on the command line: Non-existent key"),
            (("DEVICE", "toaster"), "DEVICE: Expected one of"),
        ],
    )
    def test_config(self, tiny_cfg, overrides, expected):
        with pytest.raises(UserError, match=f"^{expected}") as raised:
            tiny_cfg(*overrides)
        assert "\n" not in str(raised.value)

    def test_digits_of_another_size(self, tiny_cfg):
        with pytest.raises(UserError, match="resolution of 32 or 64, not 48"):
            train(tiny_cfg("INPUT.SIZE", 48))


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_build_their_models(file):
    cfg = load_config(str(file), ["DEVICE", "cpu", "MODEL.NORM", "EvoNormS0"])
    with torch.device("meta"):
        model = build_model(cfg, 1000)
    groups = {m.num_groups for m in model.modules() if hasattr(m, "norm_act")}
    assert max(groups) == (cfg.MODEL.NUM_GROUPS or 32)
    assert cfg.SOLVER.WARMUP_EPOCHS < cfg.SOLVER.EPOCHS


def test_a_formula_trains_as_the_layer_of_its_name(tiny_cfg, noise, tmp_path):
    states = []
    for i, norm in enumerate(("EvoNormB0", "x / max(v1 * x + std_i(x), std_b(x))")):
        train(tiny_cfg("MODEL.NORM", norm, "OUTPUT_DIR", tmp_path / str(i)))
        states.append(torch.load(tmp_path / str(i) / "checkpoint.pth", weights_only=True)["model"])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_linear_norms_where_no_activation_follows(tiny_cfg):
    overrides = "MODEL.NAME", "mobilenet_v2", "MODEL.NORM", "EvoNormS0"
    plain, normed = (
        build_model(tiny_cfg(*overrides, "MODEL.LINEAR", linear), 10) for linear in ("", "GN")
    )
    places = [path for path, m in plain.named_modules() if getattr(m, "activation", True) is False]
    assert len(places) > 10
    assert {normed.get_submodule(path).trained_as() for path in places} == {"GN"}
    with pytest.raises(UserError, match="^MODEL.LINEAR: linear='relu' should be"):
        tiny_cfg("MODEL.LINEAR", "relu")
