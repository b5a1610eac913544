"""SOLVER.ACCUMULATE, EMA_DECAY and REFERENCE_IMS_PER_BATCH, TEST.BEST_METRIC and PATIENCE."""

from __future__ import annotations

import copy
import json
import logging
import shutil

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from evonorm_d2 import train as training
from evonorm_d2.accumulate import AMPInParts, InParts
from evonorm_d2.check_run import check_run
from evonorm_d2.checkpoint import Checkpointer
from evonorm_d2.data import register_digits
from evonorm_d2.run_config import load_config
from evonorm_d2.solver import scale_to_images
from evonorm_d2.trainer import Trainer
from evonorm_runs.errors import UserError


@pytest.fixture
def config(tiny_run, tmp_path, digits_root):
    register_digits(digits_root)

    def make(*overrides, norm="EvoNormS0"):
        file, values = tiny_run(norm, "OUTPUT_DIR", tmp_path / "run", *overrides)
        return load_config(file, values)

    return make


class Regression(nn.Module):
    """Losses that are means over the images, as those of a detector are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()

    def forward(self, images):
        y = self.layers(torch.stack(images))
        return {"a": y[:, 0].square().mean(), "b": y[:, 1].abs().mean()}


def steps(kind, parts, images, wrap=lambda model: model, num=3):
    """The weights after some steps of SGD."""
    model = wrap(Regression())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = kind(model, [images] * num, optimizer)
    trainer.parts = parts
    for trainer.iter in range(num):
        trainer.run_step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.filterwarnings("ignore")  # there is no GPU for the scaler
@pytest.mark.parametrize("kind, parts", [(InParts, 1), (InParts, 3), (InParts, 6), (AMPInParts, 2)])
def test_a_step_in_parts_is_the_step_of_the_batch(kind, parts):
    torch.manual_seed(1)
    images = list(torch.randn(6, 5, dtype=torch.float64))
    expected = steps(SimpleTrainer, 1, images)
    torch.testing.assert_close(steps(kind, parts, images), expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(expected, steps(SimpleTrainer, 1, images[:3]), rtol=1e-3)


def _share(rank, folder):
    """A process's steps on its half of the images."""
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(1)
    images = list(torch.randn(8, 5, dtype=torch.float64))
    with EventStorage(0):
        found = steps(InParts, 2, images[4 * rank : 4 * rank + 4], DistributedDataParallel)
    torch.save(found, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_processes_average_the_gradients_of_all_parts(tmp_path):
    mp.start_processes(_share, (str(tmp_path),), nprocs=2, start_method="fork")
    torch.manual_seed(1)
    expected = steps(SimpleTrainer, 1, list(torch.randn(8, 5, dtype=torch.float64)))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pth")
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_detectors_step_in_parts_is_that_of_several_gpus(config):
    trainer = Trainer(config("SOLVER.ACCUMULATE", 2, "SOLVER.IMS_PER_BATCH", 4))
    replica, trainer.iter = copy.deepcopy(trainer.model), 0
    images = next(iter(trainer.data_loader))
    torch.manual_seed(5)
    trainer._trainer._data_loader_iter_obj = iter([images])  # of Detectron2's main branch
    if "_data_loader_iter" in vars(trainer._trainer):
        trainer._trainer._data_loader_iter = iter([images])
    trainer.run_step()
    torch.manual_seed(5)
    for part in (images[:2], images[2:]):  # as two GPUs with their gradients averaged
        (sum(replica(part).values()) / 2).backward()
    for (name, p), q in zip(trainer.model.named_parameters(), replica.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    "norm, backbone, told",
    [
        ("EvoNormS0", "EvoNormS0", ""),
        ("EvoNormB0", "EvoNormB0", "EvoNormB0"),
        ("EvoNormS0", "BN", "BatchNorm2d"),
        ("BN", "FrozenBN", "BN-ReLU"),
    ],
)
def test_batch_statistics_of_parts_are_told(config, norm, backbone, told, caplog):
    caplog.set_level(logging.WARNING)
    Trainer(config("SOLVER.ACCUMULATE", 2, "MODEL.RESNETS.NORM", backbone, norm=norm))
    lines = [line for line in caplog.messages if "ACCUMULATE" in line]
    assert len(lines) == bool(told) and all(told in line for line in lines)


@pytest.mark.parametrize(
    "overrides, reason",
    [
        (("SOLVER.ACCUMULATE", 0), "SOLVER.ACCUMULATE is 0, but should be more than 0"),
        (("SOLVER.ACCUMULATE", 4), "SOLVER.ACCUMULATE is 4, but each process has 2 images"),
        (("SOLVER.EMA_DECAY", 1.0), "SOLVER.EMA_DECAY is 1.0, but should be in [0, 1)"),
        (("TEST.BEST_METRIC", "bbox/AP", "DATASETS.TEST", "()"), "DATASETS.TEST is empty"),
        (("TEST.PATIENCE", -1), "TEST.PATIENCE is -1, but should not be negative"),
        (("TEST.PATIENCE", 2, "TEST.EVAL_PERIOD", 1), "so TEST.BEST_METRIC should name a figure"),
        (("TEST.PATIENCE", 2, "TEST.BEST_METRIC", "bbox/AP"), "TEST.EVAL_PERIOD be more than 0"),
    ],
)
def test_what_is_refused(config, overrides, reason):
    with pytest.raises(UserError) as error:
        check_run(config(*overrides), False, False)
    assert reason in str(error.value)


@pytest.fixture
def rated(monkeypatch):
    """rated(APs): what evaluations give; returns the weights that they see, and each step's."""

    def rate(values):
        seen, after_steps, values = [], [], iter(values)

        def weights(model):
            return copy.deepcopy({k: v for k, v in model.state_dict().items()})

        def test(cls, cfg, model):
            seen.append(weights(model))
            return {"bbox": {"AP": next(values)}}

        step = SimpleTrainer.run_step

        def run_step(self):
            step(self)
            after_steps.append(weights(self.model))

        monkeypatch.setattr(Trainer, "test", classmethod(test))
        monkeypatch.setattr(SimpleTrainer, "run_step", run_step)
        return seen, after_steps

    return rate


def test_the_average_is_evaluated_kept_and_loaded(config, tmp_path, rated, equal):
    """Also in a run that goes on: it equals an uninterrupted one."""
    keys = ("SOLVER.EMA_DECAY", 0.75, "SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 2, "SEED", 1)
    cfg = config(*keys, norm="EvoNormB0")
    (tmp_path / "run").mkdir()
    seen, after_steps = rated([1.0, 2.0])
    training.train(cfg)
    assert len(after_steps) == 4 and len(seen) == 2
    for name, first in after_steps[0].items():  # running statistics, too
        expected = first.double()
        for later in after_steps[1:]:
            expected = 0.75 * expected + 0.25 * later[name].double()
        torch.testing.assert_close(seen[1][name].double(), expected, rtol=1e-5, atol=1e-7)
    model = Trainer.build_model(cfg)
    Checkpointer(model, cfg=cfg).load(str(tmp_path / "run/model_final.pth"))
    assert equal(dict(model.state_dict()), seen[1])
    assert not equal(seen[1], after_steps[3])

    other = config(*keys, "OUTPUT_DIR", tmp_path / "resumed", norm="EvoNormB0")
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "run/model_0000001.pth", tmp_path / "resumed")
    (tmp_path / "resumed/last_checkpoint").write_text("model_0000001.pth")
    rated([1.0, 2.0])
    training.train(other, resume=True)
    states = [
        torch.load(tmp_path / folder / "model_final.pth", weights_only=True)
        for folder in ("run", "resumed")
    ]
    assert states[0]["ema"]["n_averaged"] == 4
    assert equal(*(state["ema"] for state in states)) and equal(*(s["model"] for s in states))


def best(folder):
    return torch.load(folder / "model_best.pth", weights_only=True)["iteration"]


def test_the_best_checkpoint_stays_when_a_run_goes_on(config, tmp_path, rated):
    cfg = config(
        *("TEST.BEST_METRIC", "bbox/AP", "TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 4),
        *("SOLVER.CHECKPOINT_PERIOD", 3),
    )
    folder = tmp_path / "run"
    folder.mkdir()
    rated([float("nan"), 7.0, 3.0, 5.0])
    training.train(cfg)
    assert best(folder) == 1
    log = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert [line["bbox/AP"] for line in log][1:] == [7.0, 3.0, 5.0]
    # As if killed after its third iteration: 5 is not the best then, 8 is.
    for again, iteration in ((5.0, 1), (8.0, 3)):
        (folder / "last_checkpoint").write_text("model_0000002.pth")
        rated([again])
        training.train(cfg, resume=True)
        assert best(folder) == iteration
    (folder / "model_best.pth").unlink()  # as if killed before it was written
    (folder / "last_checkpoint").write_text("model_final.pth")
    rated([8.0])
    training.train(cfg, resume=True)
    assert best(folder) == 3


def test_a_wrong_name_of_the_best_metric_is_said(config, tmp_path, rated, caplog):
    (tmp_path / "run").mkdir()
    rated([7.0])
    training.train(config("TEST.BEST_METRIC", "bbox/ap", "SOLVER.MAX_ITER", 1))
    assert "TEST.BEST_METRIC is 'bbox/ap', but the evaluation gave bbox/AP: there" in caplog.text


def test_a_run_ends_when_nothing_is_better_for_long_enough(config, tmp_path, rated):
    keys = (
        *("TEST.BEST_METRIC", "bbox/AP", "TEST.EVAL_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 1),
        *("SOLVER.MAX_ITER", 7, "TEST.PATIENCE"),
    )
    folder = tmp_path / "run"
    folder.mkdir()

    def done():
        return torch.load(folder / "model_final.pth", weights_only=True)["iteration"] + 1

    _, steps_done = rated([3.0, 5.0, float("nan"), 5.0])
    assert training.train(config(*keys, 2)) == {"bbox": {"AP": 5.0}}
    assert len(steps_done) == done() == 4 and best(folder) == 1
    # As if killed after its third step.
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    _, steps_done = rated([4.0])
    assert training.train(config(*keys, 2), resume=True) == {"bbox": {"AP": 4.0}}
    assert len(steps_done) == 1 and done() == 4
    # Once more: it only takes the results again.
    _, steps_done = rated([6.0])
    assert training.train(config(*keys, 2), resume=True) == {"bbox": {"AP": 6.0}}
    assert not steps_done
    check_run(config(*keys, 3), resume=True, eval_only=False)
    _, steps_done = rated([7.0, 6.0, 6.5])
    assert training.train(config(*keys, 3), resume=True) == {"bbox": {"AP": 6.5}}
    assert len(steps_done) == 3 and done() == 7 and best(folder) == 4


def test_amp_on_a_cpu_computes_in_bfloat16(config):
    """Its convolutions; losses that depend on no choice of boxes are near those of float32."""
    losses, seen = [], []
    for enabled in (False, True):
        torch.manual_seed(0)
        np.random.seed(0)  # for the order of the images
        trainer = Trainer(config("SOLVER.AMP.ENABLED", enabled))
        trainer.iter = 0
        conv = trainer.model.backbone.bottom_up.stem.conv1
        conv.register_forward_hook(lambda module, x, y: seen.append(y.dtype))
        torch.manual_seed(1)
        with EventStorage(0) as storage:
            trainer.run_step()
        losses.append([storage.latest()[f"loss_rpn_{x}"][0] for x in ("cls", "loc")])
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        assert {p.grad.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert seen == [torch.float32, torch.bfloat16]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]
    saved = trainer.state_dict()
    trainer.load_state_dict(saved)


def test_weights_and_biases_gets_what_tensorboard_gets(config, tmp_path, rated, fake_wandb):
    (tmp_path / "run").mkdir()
    rated([1.0, 2.0])
    keys = ("WANDB_PROJECT", "mine", "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1)
    training.train(config(*keys, "TEST.BEST_METRIC", "bbox/AP"))
    (kind, init), *lines, last = fake_wandb
    assert (kind, init["project"], init["name"], last[0]) == ("init", "mine", "run", "finish")
    assert init["config"]["SOLVER.MAX_ITER"] == 2
    assert [step for _, step, _ in lines] == sorted(step for _, step, _ in lines)
    found = {key: (step, value) for _, step, values in lines for key, value in values.items()}
    assert found["bbox/AP"] == (1, 2.0) and {"total_loss", "lr"} <= found.keys()


def test_rate_and_schedule_are_scaled_to_the_images_once(config):
    keys = ("SOLVER.BASE_LR", 0.04, "SOLVER.MAX_ITER", 90, "SOLVER.STEPS", "(60, 80)")
    periods = ("TEST.EVAL_PERIOD", 30, "SOLVER.CHECKPOINT_PERIOD", 20, "SOLVER.WARMUP_ITERS", 10)
    cfg = config(*keys, *periods, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.REFERENCE_IMS_PER_BATCH", 8)
    for key, expected in {
        **{"BASE_LR": 0.02, "MAX_ITER": 180, "STEPS": (120, 160), "WARMUP_ITERS": 20},
        **{"CHECKPOINT_PERIOD": 40, "IMS_PER_BATCH": 4, "REFERENCE_IMS_PER_BATCH": 4},
        "REFERENCE_WORLD_SIZE": 0,
    }.items():
        assert cfg.SOLVER[key] == expected, key
    assert cfg.TEST.EVAL_PERIOD == 60 and cfg.is_frozen()
    assert scale_to_images(cfg.clone()) == cfg
    larger = config(*keys, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.REFERENCE_IMS_PER_BATCH", 8)
    assert larger.SOLVER.BASE_LR == 0.08 and larger.SOLVER.MAX_ITER == 45
