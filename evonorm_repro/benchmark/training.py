"""Seconds per training iteration; tools/benchmark_training.py describes what is measured."""

from __future__ import annotations

import copy
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evonorm import NormAct, convert, recompute
from evonorm_runs import distributed
from evonorm_runs.checkout import ROOT

from .layers import WARM_UP, align, quartiles, summary

CONFIGS = ROOT / "configs"
FREE = "free"  # EvoNorm-S0's model with nothing in the place of its norm-acts
RECOMPUTED = "EvoNormS0 recomputed"  # with MODEL.EVONORM.RECOMPUTE
CHECKPOINTED = "EvoNormS0 checkpointed"  # each block of the ResNet or generator computed again
NORMS = ("BN", "GN", "EvoNormB0", "EvoNormS0", RECOMPUTED, CHECKPOINTED, FREE)
# Of what to what; a second one for EvoNorm-S0 is its distance from a layer that costs nothing.
RATIOS = (
    ("EvoNormB0", "BN"),
    ("EvoNormS0", "GN"),
    (RECOMPUTED, "GN"),
    (RECOMPUTED, "EvoNormS0"),
    (CHECKPOINTED, "EvoNormS0"),
    ("BN", FREE),
    ("GN", FREE),
    ("EvoNormB0", FREE),
    ("EvoNormS0", FREE),
    ("ours, training", "timm's, training"),
    ("ours, evaluation", "timm's, evaluation"),
)
TIMM, TIMM_IMAGES = "timm/", 2
# Each model's config file and what is changed in it.
DETECTORS = {
    "mask-rcnn-digits": ("detection/digits/mask_rcnn_digits_{}.yaml", {}),
    "mask-rcnn-r50-256": (
        "detection/stock/mask_rcnn_R_50_FPN_1x_{}.yaml",
        # The layers alone, without GroupNorm where no activation follows.
        {"SOLVER.IMS_PER_BATCH": 2, "INPUT.MAX_SIZE_TRAIN": 256, "MODEL.EVONORM.LINEAR": ""},
    ),
}
GANS = {
    name: ("gan/digits.yaml", {"MODEL.RESOLUTION": resolution})
    for name, resolution in (("biggan-32", 32), ("biggan-64", 64))
}
GANS["biggan-128"] = ("gan/imagenet128.yaml", {"SOLVER.BATCH_SIZE": 32, "MODEL.SYNC": False})
Step = Callable[[], None]


def build_steps(
    model: str, device: str, overrides: list[str], norms: Sequence[str] = NORMS
) -> dict[str, Step]:
    """An iteration of the model with each of these norms; of a timm model, see timms_and_ours."""
    if model.startswith(TIMM):
        return timms_and_ours(model.removeprefix(TIMM), device)
    build = detector if model in DETECTORS else gan
    steps = {}
    for norm in norms:
        torch.manual_seed(0)
        steps[norm] = build(model, norm, device, overrides)
    return steps


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
    name = norm.split(" ")[0] if norm != FREE else "EvoNormS0"
    cfg = load_config(str(CONFIGS / file.format(name)), [*flat(changes), *overrides])
    network = variant(build_model(cfg), norm)
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
    """An iteration of BigGAN-deep: the steps of its training, on one batch of noise."""
    from evonorm_gan import steps
    from evonorm_gan.config import load_config
    from evonorm_gan.run import GanRun

    file, changes = GANS[model]
    names = {"BN": "BN-ReLU", "GN": "GN-ReLU", FREE: "EvoNormS0"}
    changes = {**changes, "MODEL.NORM": names.get(norm, norm.split(" ")[0])}
    cfg = load_config(str(CONFIGS / file), [*flat(changes), "DEVICE", device, *overrides])
    torch.backends.cudnn.benchmark = True  # as in training
    run = GanRun(cfg, torch.device(device), [""] * cfg.MODEL.NUM_CLASSES, images=0)
    run.ema.module = copy.deepcopy(variant(run.G.network, norm)).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    number = cfg.SOLVER.BATCH_SIZE // distributed.world_size()
    shape = (number, 3, cfg.MODEL.RESOLUTION, cfg.MODEL.RESOLUTION)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.randint(cfg.MODEL.NUM_CLASSES, shape[:1], generator=generator)
    numbers = itertools.count(1)

    def step() -> None:
        number = next(numbers)
        for i in range(cfg.SOLVER.D_STEPS):
            steps.discriminator_step(run, number, i, images, labels)
        steps.generator_step(run, number)
        steps.update_average(run, number)

    return step


def timms_and_ours(name: str, device: str) -> dict[str, Step]:
    """Training and evaluation of a classifier with timm's own EvoNorms, and converted.

    Raises:
        ValueError: timm is not installed, or has no such model with EvoNorms.
    """
    try:
        import timm

        theirs = timm.create_model(name).to(device)
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"--model {TIMM}{name}: {error}") from error
    ours = copy.deepcopy(theirs)
    convert(ours)
    images = torch.randn(TIMM_IMAGES, *theirs.default_cfg["input_size"], device=device)
    models = {"timm's": theirs, "ours": ours}
    training = {f"{whose}, training": _training(m, images) for whose, m in models.items()}
    return training | {f"{whose}, evaluation": _forward(m, images) for whose, m in models.items()}


def _training(model: nn.Module, images: Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        model.train()(images).logsumexp(1).mean().backward()
        optimizer.step()

    return step


def _forward(model: nn.Module, images: Tensor) -> Step:
    def step() -> None:
        with torch.inference_mode():
            model.eval()(images)

    return step


def variant(network: nn.Module, norm: str) -> nn.Module:
    """The network of EvoNorm-S0 made that of FREE, RECOMPUTED or CHECKPOINTED, in place."""
    if norm == RECOMPUTED:
        recompute(network)
    if norm == CHECKPOINTED:
        for block in network.modules():
            if type(block).__name__.endswith("Block"):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if norm == FREE:
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, NormAct) and child.activation:
                    setattr(module, name, Nothing())
                elif isinstance(child, nn.Conv2d):
                    child.weight.data /= 2  # without norms, values would grow from layer to layer
    return network


class Nothing(nn.Module):
    """The input itself. What else a norm-act would get has the gradient zero."""

    def forward(
        self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        return x if weight is None else _Unused.apply(x, weight, bias)


class _Unused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight, bias)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias = ctx.saved_tensors
        return dy, torch.zeros_like(weight), torch.zeros_like(bias)


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


def peak_bytes(step: Step, device: str) -> int:
    """The most that an iteration allocates at a time, beside what is there when it begins."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        for _ in range(2):  # the second frees gradients of the first
            step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    sizes = [e["args"] for e in events if e.get("name") == "[memory]"]
    before = sizes[0]["Total Allocated"] - sizes[0]["Bytes"]
    return max(size["Total Allocated"] for size in sizes) - before


def memory(steps: dict[str, Step], device: str) -> list[dict[str, Any]]:
    """Of each norm, what :func:`peak_bytes` and :func:`kept_bytes` give.

    What is kept where outputs are computed again is not counted.
    """
    results = []
    for norm, step in steps.items():
        step()  # makes what the optimizer keeps
        hidden = norm in (RECOMPUTED, CHECKPOINTED)
        kept = {} if hidden else {"kept_bytes": kept_bytes(step)}
        results.append({"norm": norm, "peak_bytes": peak_bytes(step, device), **kept})
    return results


def memory_table(results: list[dict[str, Any]]) -> str:
    rows = [["", "peak, MiB", "kept, MiB"]]
    for r in results:
        both = (r["peak_bytes"], r.get("kept_bytes"))
        rows.append([r["norm"], *("" if x is None else f"{x / 2**20:.1f}" for x in both)])
    return "\n".join(align(rows))


def report(times: dict[str, list[float]], peaks: dict[str, int]) -> dict[str, Any]:
    results = []
    for name, taken in times.items():
        peak = {"peak_bytes": peaks[name]} if peaks else {}
        results.append({"norm": name, **summary(taken, "s"), **peak})
    ratios = {}
    for ours, theirs in RATIOS:
        if not {ours, theirs} <= times.keys():
            continue
        each = [a / b for a, b in zip(times[ours], times[theirs])]
        low, median, high = quartiles(each)
        ratios[f"{ours} / {theirs}"] = {"median": median, "quartiles": [low, high]}
    return {"results": results, "ratios": ratios}


def table(record: dict[str, Any]) -> str:
    on_gpu = "peak_bytes" in record["results"][0]
    head = [record["model"], "s/iteration", "quartiles"]
    rows = [[*head, "peak, MB"] if on_gpu else head]
    for r in record["results"]:
        row = [r["norm"], f"{r['median_s']:.3f}", spread(r["quartiles_s"])]
        rows.append([*row, f"{r['peak_bytes'] / 1e6:.0f}"] if on_gpu else row)
    ratios = [["ratio", "median", "quartiles"]]
    for names, ratio in record["ratios"].items():
        ratios.append([names, f"{ratio['median']:.3f}", spread(ratio["quartiles"])])
    return "\n".join([*align(rows), "", *align(ratios)])


def spread(quartiles: list[float]) -> str:
    return " to ".join(f"{q:.3f}" for q in quartiles)
