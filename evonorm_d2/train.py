"""Training and evaluation as Detectron2's default trainer does it, with care for norm-acts."""

from __future__ import annotations

import contextlib
import logging
import warnings
import weakref
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Callable

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventStorage, EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from evonorm import recompute
from evonorm.statistics import update_running_statistics
from evonorm_runs import distributed, stop
from evonorm_runs.checkpoint import check_same_run
from evonorm_runs.config import merge_saved
from evonorm_runs.errors import UserError, disk_errors, one_line, user_errors
from evonorm_runs.folder import CONFIG, METRICS, dump_line, keep_lines, read_metrics

from . import average, solver
from .accumulate import in_parts, on_cpu
from .best import BestCheckpoint, EnoughEvaluations, Patience
from .checkpoint import Checkpointer, RandomState, kept_random_state
from .config import add_evonorm_config
from .data.check import check_data
from .evaluators import MAIN_FIGURES, build_evaluator, check_types
from .loader import TrainLoader, build_test_loader, check_names
from .settings import check_settings
from .wandb_writer import WandbWriter

# What may differ when a run is resumed. Any other key would make it another run or its evaluations
# not comparable, or has its value in the checkpoint, like the learning rate.
MAY_DIFFER = {
    "MODEL.DEVICE",
    "MODEL.EVONORM.RECOMPUTE",
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.CHECKPOINT_PERIOD",
    "DATALOADER.NUM_WORKERS",
    "TEST.BEST_METRIC",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
    "TEST.PATIENCE",
    "CUDNN_BENCHMARK",
    "VIS_PERIOD",
}


class Trainer(DefaultTrainer):
    """Detectron2's default trainer with our optimizer, checkpoints, data and running statistics.

    A run that was killed and resumed equals an uninterrupted one bit for bit, in one process on a
    CPU and as far as :class:`TrainLoader` can restore the position in the data.

    Attributes:
        average: the moving average of the model (SOLVER.EMA_DECAY), which is evaluated; or None.
    """

    def __init__(self, cfg: CfgNode) -> None:
        with warnings.catch_warnings():
            # On a CPU Detectron2 makes a scaler, and PyTorch warns that there is no GPU for it.
            warnings.filterwarnings("ignore", ".*torch.cuda.amp.GradScaler")
            super().__init__(cfg)
        if cfg.SOLVER.ACCUMULATE > 1 or (cfg.SOLVER.AMP.ENABLED and on_cpu(self.model)):
            self._trainer = in_parts(self._trainer, cfg.SOLVER.ACCUMULATE)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        return recompute(model) if cfg.MODEL.EVONORM.RECOMPUTE else model

    def build_hooks(self) -> list[HookBase | None]:
        # Called at the end of __init__, when Detectron2 has made the checkpointer to replace.
        self.checkpointer = Checkpointer(
            self.model,
            self.cfg.OUTPUT_DIR,
            cfg=self.cfg,
            trainer=weakref.proxy(self),
            data=self.data_loader,
            random=RandomState(),
        )
        self.average = None
        if self.cfg.SOLVER.EMA_DECAY:
            model = self.checkpointer.model  # not wrapped for distributed training
            self.average = average.weight_average(model, self.cfg.SOLVER.EMA_DECAY)
            self.checkpointer.add_checkpointable(average.KEY, self.average)
        result = super().build_hooks()
        savers = (hooks.PeriodicCheckpointer, hooks.EvalHook)
        first_saver = next(i for i, hook in enumerate(result) if isinstance(hook, savers))
        result.insert(first_saver, RunningStatistics(self.cfg))
        if self.average is not None:
            result.insert(first_saver, average.UpdateAverage(self.average))
        writers = [x for hook in result for x in getattr(hook, "_writers", [])]
        place = next(i for i, hook in enumerate(result) if isinstance(hook, hooks.EvalHook))
        result[place] = Evaluation(result[place]._period, self._evaluate, writers)
        if self.cfg.TEST.PATIENCE:
            result.insert(place + 1, Patience(self.cfg, self._evaluate))
        if self.cfg.TEST.BEST_METRIC and comm.is_main_process():
            result.insert(place + 1, BestCheckpoint(self.cfg, self.checkpointer))
        return [*result, StopOnSigterm()]

    def build_writers(self) -> list[EventWriter]:
        wandb = [WandbWriter(self.cfg)] if self.cfg.WANDB_PROJECT else []
        return [*super().build_writers(), *wandb]

    def _evaluate(self) -> dict[str, Any]:
        model = self.model if self.average is None else self.average.module
        results = self.test(self.cfg, model)
        if self.cfg.TEST.AUG.ENABLED and self.iter + 1 >= self.max_iter:
            results.update(self.test_augmented(self.cfg, model))
        self._last_eval_results = results
        return results

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        self.data_loader.start = self.start_iter

    def run_step(self) -> None:
        with user_errors(FloatingPointError, prefix="try a lower SOLVER.BASE_LR: "):
            super().run_step()

    # Detectron2 0.6 forgets the optimizer.

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        state = state_dict["_trainer"]
        scaler = getattr(self._trainer, "grad_scaler", None)
        if scaler is not None:  # which a run on a CPU has none of
            state = {"grad_scaler": scaler.state_dict(), **state}
        self._trainer.load_state_dict(state)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return solver.build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return TrainLoader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        with kept_random_state():  # a run does not depend on when it is evaluated
            return super().test(cfg, model, evaluators)

    @classmethod
    def test_augmented(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Test with Detectron2's test-time augmentation (TEST.AUG); keys end in _TTA."""
        augmented = GeneralizedRCNNWithTTA(cfg, model).train(model.training)
        folder = "inference_TTA"
        evaluators = [build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        found = cls.test(cfg, augmented, evaluators)
        return {f"{key}_TTA": value for key, value in found.items()}


class Evaluation(hooks.EvalHook):
    """Detectron2's hook, with a log that holds each evaluation once, with the iteration it follows.

    Detectron2 logs the last evaluation an iteration late, and writes the others down up to 19
    iterations later. If a run is killed before an evaluation, it is done when the run goes on.
    """

    def __init__(
        self, period: int, evaluate: Callable[[], dict[str, Any]], writers: list[EventWriter]
    ) -> None:
        super().__init__(period, evaluate)
        self.writers = [x for x in writers if not isinstance(x, CommonMetricPrinter)]

    def before_train(self) -> None:
        done, storage = self.trainer.start_iter, self.trainer.storage
        missed = self._due(done) and comm.is_main_process() and not self._logged(done - 1)
        if distributed.any_rank(missed):
            storage.iter = done - 1
            self._evaluate()
            storage.iter = done
        elif done >= self.trainer.max_iter:
            self._func()  # the results of a run that had ended, which are in the log

    def after_step(self) -> None:
        if self._due(self.trainer.iter + 1):
            self._evaluate()

    def after_train(self) -> None:
        del self._func  # like Detectron2's hook, this one refers to the trainer

    def _due(self, done: int) -> bool:
        periodic = self._period > 0 and done > 0 and done % self._period == 0
        return periodic or done == self.trainer.max_iter

    def _logged(self, iteration: int) -> bool:
        folder = Path(self.trainer.cfg.OUTPUT_DIR)
        lines = read_metrics(folder)[0] if (folder / METRICS).exists() else []
        mine = (line for line in lines if line.get("iteration") == iteration)
        return any(key.rpartition("/")[2] in MAIN_FIGURES for line in mine for key in line)

    def _evaluate(self) -> None:
        self._do_eval()
        for writer in self.writers:
            writer.write()


class StopOnSigterm(HookBase):
    """After a step in which SIGTERM came, writes a checkpoint and raises Stopped."""

    def after_step(self) -> None:
        trainer = self.trainer
        if trainer.iter + 1 == trainer.max_iter or not stop.asked():
            return
        for model in _models(trainer):
            average_over_processes(_batch_dependent(model))
        if comm.is_main_process():
            trainer.checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
        raise stop.Stopped(
            f"stopped by SIGTERM after iteration {trainer.iter}; continue with --resume"
        )


class RunningStatistics(HookBase):
    """Prepares running statistics of batch-dependent norm-acts for checkpoints and evaluations.

    They are averaged over the processes. Each process has its own, as Detectron2 does not broadcast
    buffers. With TEST.PRECISE_BN.ENABLED they are first taken anew, with fixed weights, over
    TEST.PRECISE_BN.NUM_ITER batches, whenever Detectron2's PreciseBN does so for BatchNorm.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.precise = cfg.TEST.PRECISE_BN
        self.eval_period = cfg.TEST.EVAL_PERIOD
        self.checkpoint_period = cfg.SOLVER.CHECKPOINT_PERIOD

    def after_step(self) -> None:
        for model in _models(self.trainer):
            layers = _batch_dependent(model)
            if layers and self._due(self.eval_period) and self.precise.ENABLED:
                batches = islice(self.trainer.data_loader.batches(0), self.precise.NUM_ITER)
                recompute_statistics(model, batches)
            if layers and (self._due(self.eval_period) or self._due(self.checkpoint_period)):
                average_over_processes(layers)

    def _due(self, period: int) -> bool:
        done = self.trainer.iter + 1
        return done == self.trainer.max_iter or (period > 0 and done % period == 0)


def _models(trainer: Trainer) -> list[nn.Module]:
    """The model, not wrapped for distributed training, and its average if there is one."""
    average = [] if trainer.average is None else [trainer.average.module]
    return [trainer.checkpointer.model, *average]


def _batch_dependent(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if getattr(m, "batch_dependent", False) and m.training]


def recompute_statistics(model: nn.Module, batches: Iterable[list[dict]]) -> None:
    """Precise running statistics for norm-acts in training mode; BatchNorm layers keep theirs."""
    stock = get_bn_modules(model)
    momentum = [layer.momentum for layer in stock]
    for layer in stock:
        layer.momentum = 0.0
    try:
        with EventStorage():  # takes what the model logs
            seen = update_running_statistics(model, batches)
    finally:
        for layer, value in zip(stock, momentum):
            layer.momentum = value
    logging.getLogger(__name__).info("Took running statistics over %d batches", seen)


def average_over_processes(layers: Iterable[nn.Module]) -> None:
    """Average the buffers of layers over the processes of a distributed run, in place."""
    if comm.get_world_size() > 1:
        for buffer in (buffer for layer in layers for buffer in layer.buffers()):
            torch.distributed.all_reduce(buffer)
            buffer /= comm.get_world_size()


def check_run(
    cfg: CfgNode, resume: bool, eval_only: bool, num_gpus: int = 1, num_machines: int = 1
) -> None:
    """Raise UserError for what would later go wrong or overwrite something."""
    available = torch.cuda.device_count() if cfg.MODEL.DEVICE.startswith("cuda") else 0
    if num_gpus * num_machines > 1 and num_gpus > available:
        raise UserError(
            f"--num-gpus {num_gpus}: PyTorch sees {available} to use here; several processes need "
            "a GPU each, one process runs on a CPU (MODEL.DEVICE cpu)"
        )
    check_settings(cfg, not eval_only, num_gpus * num_machines)
    train_sets = () if eval_only else cfg.DATASETS.TRAIN
    check_names([*train_sets, *cfg.DATASETS.TEST])
    check_types(train_sets, cfg.DATASETS.TEST)
    held = any(Path(cfg.OUTPUT_DIR).glob("*.pth"))
    if eval_only and not cfg.MODEL.WEIGHTS and not (resume and held):
        raise UserError(
            "--eval-only: nothing to evaluate; name a checkpoint with MODEL.WEIGHTS, "
            "or take the last one in OUTPUT_DIR with --resume"
        )
    config = Path(cfg.OUTPUT_DIR, CONFIG)
    if resume and held and not eval_only and config.exists():
        with user_errors(OSError, ValueError):
            texts = config.read_text(), cfg.dump()  # both as yaml, which has no tuples
        old, new = (merge_saved(add_evonorm_config(get_cfg()), x, str(config)) for x in texts)
        paths = {f"DATASETS.COCO.{name}" for name in cfg.DATASETS.COCO}  # data may be moved
        check_same_run(old, new, config, MAY_DIFFER | paths)
    check_data(cfg, train_sets, cfg.DATASETS.TEST)


def train(cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
    """Train and evaluate; everything is written to OUTPUT_DIR.

    Args:
        resume: continue from the last checkpoint in OUTPUT_DIR, if there is one.

    Returns:
        the results of the last evaluation, {"bbox": {"AP": ...}, ...}, per data set if there are
        several, and empty in all processes but the first.

    Raises:
        UserError: a config, data set, image or checkpoint that is wrong or missing; divergence; a
            disk that is full.
        Stopped: by SIGTERM, after an iteration whose checkpoint is written.
    """
    logging.getLogger("detectron2.engine.train_loop").addFilter(_without_user_errors)
    folder = Path(cfg.OUTPUT_DIR)
    with stop.on_sigterm(), disk_errors(folder):
        done = Checkpointer(nn.Module(), str(folder)).done() if resume else 0
        # Lines after the last checkpoint of a run that was killed are written again.
        keep_lines(folder, lambda line: line.get("iteration", done) < done)
        with _setting_up():
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume)
        if done >= trainer.max_iter and not (folder / "model_final.pth").exists():
            trainer.checkpointer.save("model_final", iteration=done - 1)  # killed before it was
        with contextlib.suppress(EnoughEvaluations):
            trainer.train()
    return trainer._last_eval_results


def evaluate(cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
    """Evaluate MODEL.WEIGHTS and append the results to metrics.json in OUTPUT_DIR.

    Args:
        resume: evaluate the last checkpoint in OUTPUT_DIR instead, if there is one.

    Returns, raises: as :func:`train`.
    """
    with _setting_up():
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR, cfg=cfg)
        rest = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_augmented(cfg, model))
    if comm.is_main_process():
        line = {"iteration": rest.get("iteration", 0), **flatten_results_dict(results)}
        path = Path(cfg.OUTPUT_DIR, METRICS)
        with disk_errors(path), open(path, "ab") as file:
            file.write(dump_line(line))
        verify_results(cfg, results)
    return results


def summary(results: dict[str, Any]) -> str:
    """The main figures in results on one line, such as `box AP 43.6, mask AP 39.4`."""
    names = {"bbox": "box", "segm": "mask"}
    return ", ".join(
        f"{' '.join(names.get(part, part) for part in key.split('/'))} {value:.1f}"
        for key, value in flatten_results_dict(results).items()
        if key.rpartition("/")[2] in MAIN_FIGURES
    )


@contextlib.contextmanager
def _setting_up() -> Iterator[None]:
    """What Detectron2 raises for a config or checkpoint that does not fit becomes a UserError."""
    try:
        with user_errors(AssertionError, OSError, ValueError):  # its asserts check configs
            yield
    except KeyError as error:
        if "registry" in str(error):  # a component's name
            raise UserError(one_line(error)) from error
        raise


def _without_user_errors(record: logging.LogRecord) -> bool:
    """Detectron2 logs each exception with its traceback; for a UserError its line is enough."""
    told = (UserError, FloatingPointError, EnoughEvaluations)
    return not (record.exc_info and isinstance(record.exc_info[1], told))
