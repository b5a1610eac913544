"""Seconds per training iteration; tools/benchmark_training.py describes what is measured."""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections import Counter
from typing import Any, Callable

import torch
from torch import Tensor

from evonorm_runs.checkout import ROOT

from .layers import WARM_UP, align, quartiles, summary

CONFIGS = ROOT / "configs"
NORMS = ("BN", "GN", "EvoNormB0", "EvoNormS0")
RATIOS = {"EvoNormB0": "BN", "EvoNormS0": "GN"}
# Each model's config file and what is changed in it.
DETECTORS = {
    "mask-rcnn-digits": ("detection/digits/mask_rcnn_digits_{}.yaml", {}),
    "mask-rcnn-r50-256": (
        "detection/stock/mask_rcnn_R_50_FPN_1x_{}.yaml",
        {"SOLVER.IMS_PER_BATCH": 2, "INPUT.MAX_SIZE_TRAIN": 256},
    ),
}
GANS = {
    name: ("gan/digits.yaml", {"MODEL.RESOLUTION": resolution})
    for name, resolution in (("biggan-32", 32), ("biggan-64", 64))
}
Step = Callable[[], None]


def detector(model: str, norm: str, device: str, overrides: list[str]) -> Step:
    """An iteration of Mask R-CNN, as Detectron2's trainer does it."""
    from detectron2.engine import AMPTrainer, SimpleTrainer
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from evonorm_d2.run_config import load_config
    from evonorm_d2.solver import build_optimizer

    file, changes = DETECTORS[model]
    # One process has nothing to synchronise; the low rate lets a random batch do no harm.
    changes = {
        "MODEL.EVONORM.SYNC": False,
        "SOLVER.BASE_LR": 1e-6,
        "MODEL.DEVICE": device,
    } | changes
    cfg = load_config(str(CONFIGS / file.format(norm)), [*flat(changes), *overrides])
    network = build_model(cfg)
    trainer = (AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(
        network, itertools.repeat(random_scenes(cfg)), build_optimizer(cfg, network)
    )

    def step() -> None:
        with EventStorage():
            trainer.run_step()

    return step


def random_scenes(cfg: Any) -> list[dict[str, Any]]:
    """A batch for Detectron2: noise, with as many objects as the mask head samples per image."""
    from detectron2.structures import BitMasks, Boxes, Instances

    size, heads = cfg.INPUT.MAX_SIZE_TRAIN, cfg.MODEL.ROI_HEADS
    number = int(heads.BATCH_SIZE_PER_IMAGE * heads.POSITIVE_FRACTION)
    generator = torch.Generator().manual_seed(0)
    batch = []
    for _ in range(cfg.SOLVER.IMS_PER_BATCH):
        sides = size * (0.1 + 0.3 * torch.rand(number, 2, generator=generator))
        corners = (size - sides) * torch.rand(number, 2, generator=generator)
        boxes = torch.cat([corners, corners + sides], 1)
        at = torch.arange(size)
        columns, rows = ((boxes[:, i, None] <= at) & (at < boxes[:, i + 2, None]) for i in range(2))
        instances = Instances((size, size))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.randint(heads.NUM_CLASSES, (number,), generator=generator)
        instances.gt_masks = BitMasks(rows[:, :, None] & columns[:, None, :])
        image = torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": size, "width": size})
    return batch


def gan(model: str, norm: str, device: str, overrides: list[str]) -> Step:
    """An iteration of BigGAN-deep: the steps of its trainer, on one batch of noise."""
    from evonorm_gan import trainer
    from evonorm_gan.config import load_config

    file, changes = GANS[model]
    changes = {**changes, "MODEL.NORM": {"BN": "BN-ReLU", "GN": "GN-ReLU"}.get(norm, norm)}
    cfg = load_config(str(CONFIGS / file), [*flat(changes), "DEVICE", device, *overrides])
    torch.backends.cudnn.benchmark = True  # as in training
    run = trainer.GanRun(cfg, torch.device(device), [""] * cfg.MODEL.NUM_CLASSES, images=0)
    generator = torch.Generator().manual_seed(0)
    shape = (cfg.SOLVER.BATCH_SIZE, 3, cfg.MODEL.RESOLUTION, cfg.MODEL.RESOLUTION)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.randint(cfg.MODEL.NUM_CLASSES, shape[:1], generator=generator)
    numbers = itertools.count(1)

    def step() -> None:
        number = next(numbers)
        for i in range(cfg.SOLVER.D_STEPS):
            trainer.discriminator_step(run, number, i, images, labels)
        trainer.generator_step(run, number)
        trainer.update_average(run, number)

    return step


def flat(changes: dict[str, Any]) -> list[str]:
    return [str(part) for change in changes.items() for part in change]


def measure(
    steps: dict[str, Step], repeats: int, device: str
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each iteration and, on a GPU, the bytes that it needs only while it runs."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    peaks = {}
    turns, shuffle = list(steps), random.Random(0).shuffle
    for repetition in range(WARM_UP + repeats):
        shuffle(turns)
        for name in turns:
            torch.manual_seed(repetition)  # the same regions are drawn for all
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            steps[name]()
            if device == "cuda":
                torch.cuda.synchronize()
                peaks[name] = torch.cuda.max_memory_allocated() - before
            taken = time.perf_counter() - start
            if repetition >= WARM_UP:
                times[name].append(taken)
            print(f"{repetition + 1} {name}: {taken:.3f} s", file=sys.stderr)
    return times, peaks


def kept_bytes(step: Step) -> int:
    """The most that an iteration keeps at a time for its backward passes, beside the weights."""
    held: Counter[int] = Counter()  # how many kept tensors share a storage, by its address
    total = most = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal total, most
            self.tensor, self.at = tensor, tensor.untyped_storage().data_ptr()
            weight = tensor if tensor._base is None else tensor._base
            self.size = tensor.untyped_storage().nbytes()
            if weight.is_leaf and weight.requires_grad:
                self.size = 0
            total += self.size if held[self.at] == 0 else 0
            held[self.at] += 1
            most = max(most, total)

        def __del__(self) -> None:
            nonlocal total
            held[self.at] -= 1
            total -= self.size if held[self.at] == 0 else 0

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        step()
    return most


def report(times: dict[str, list[float]], peaks: dict[str, int]) -> dict[str, Any]:
    results = []
    for name, taken in times.items():
        peak = {"peak_bytes": peaks[name]} if peaks else {}
        results.append({"norm": name, **summary(taken, "s"), **peak})
    ratios = {}
    for ours, theirs in RATIOS.items():
        each = [a / b for a, b in zip(times[ours], times[theirs])]
        low, median, high = quartiles(each)
        ratios[f"{ours} / {theirs}"] = {"median": median, "quartiles": [low, high]}
    return {"results": results, "ratios": ratios}


def table(record: dict[str, Any]) -> str:
    on_gpu = "peak_bytes" in record["results"][0]
    head = [record["model"], "s/iteration", "quartiles", "ratio", "quartiles"]
    rows = [[*head, "peak, MB"] if on_gpu else head]
    for r in record["results"]:
        ratio = record["ratios"].get(f"{r['norm']} / {RATIOS.get(r['norm'])}")
        row = [r["norm"], f"{r['median_s']:.3f}", spread(r["quartiles_s"])]
        row += [f"{ratio['median']:.3f}", spread(ratio["quartiles"])] if ratio else ["", ""]
        rows.append([*row, f"{r['peak_bytes'] / 1e6:.0f}"] if on_gpu else row)
    about = "ratio: " + ", ".join(f"{ours} to {theirs}" for ours, theirs in RATIOS.items())
    return "\n".join([*align(rows), about])


def spread(quartiles: list[float]) -> str:
    return " to ".join(f"{q:.3f}" for q in quartiles)
