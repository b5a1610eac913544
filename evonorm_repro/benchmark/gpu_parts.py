"""What tools/check_gpu.py measures, part by part."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import traceback
from argparse import Namespace
from pathlib import Path
from typing import Any, Callable
from xml.etree import ElementTree

import torch

from evonorm import ops
from evonorm_runs.checkout import ROOT
from evonorm_runs.distributed import process_flags
from evonorm_runs.errors import one_line

from . import bare, layers, ranks, training
from .part import SECONDS, Part

TINY = (2, 64, 4, 4)
LAYER_PARTS: dict[str, dict[str, Any]] = {
    "layers-bf16": {"dtype": "bfloat16"},
    "layers-compile": {"dtype": "bfloat16", "compile": True},
    "layers-float32": {},
    "layers-channels-last": {"dtype": "bfloat16", "channels_last": True},
    "growth": {},
}
SETS = ["mask-rcnn-heads", "mask-rcnn-1", "biggan-128", "mask-rcnn-2"]
WIDE = ["MODEL.G_CH", "128", "MODEL.D_CH", "128"]
SMALL_GAN = ["MODEL.RESOLUTION", "32", "MODEL.G_CH", "8", "MODEL.D_CH", "8"]
SMALL_GAN += ["MODEL.DIM_Z", "8", "MODEL.NUM_CLASSES", "10", "SOLVER.BATCH_SIZE", "4"]
# Each part's model, what is changed in its config, and what makes it compute in bfloat16.
TRAINING_PARTS = {
    "biggan-64": ("biggan-64", [*WIDE, "SOLVER.BATCH_SIZE", "64"], ["SOLVER.AMP", "bf16"]),
    "biggan-128": ("biggan-128", [], ["SOLVER.AMP", "bf16"]),
    "mask-rcnn": (
        "mask-rcnn-r50-256",
        ["INPUT.MAX_SIZE_TRAIN", "1024"],
        ["SOLVER.AMP.ENABLED", "True"],
    ),
}


def machine(part: Part) -> None:
    """Packages, GPUs, and the bandwidth of a copy."""
    names = ("timm", "triton", "torchvision", "fvcore", "detectron2", "pytest", "xdist")
    part.write(packages={name: is_there(name) for name in names})
    if part.device == "cuda":
        properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        gpus = [{"name": p.name, "bytes": p.total_memory, "capability": f"{p.major}.{p.minor}",
                 "multiprocessors": p.multi_processor_count} for p in properties]  # fmt: skip
        part.write(gpus=gpus, cuda=torch.version.cuda)
    if ops.backends()["cpu"] == "reference":
        part.leave_out(
            "the C++ library is not built, so a call takes the host longer than it could: "
            "`python3 setup.py build_ext --inplace` builds it"
        )
    for megabytes in (0.1,) if part.tiny else (4, 16, 64, 256, 1024):
        x = torch.zeros(int(megabytes * 5e5), dtype=torch.bfloat16, device=part.device)
        taken = [layers.seconds(layers.forward, layers.Copy(), x, x)[0] for _ in range(20)]
        median = layers.summary(taken[layers.WARM_UP :], "ms", 1e3)
        rate = 2 * x.nbytes / median["median_ms"] / 1e9
        part.add({"megabytes": megabytes, "terabytes_per_second": rate, **median})


def tests(part: Part) -> None:
    """The tests of the kernels, in parallel. On a CPU those that need a GPU are skipped.

    What pytest prints goes into tests.log beside the part's file: it names a test that hangs.
    """
    if not is_there("pytest"):
        part.leave_out("no test has run: pytest is not installed")
        return
    command = [sys.executable, "-m", "pytest", "-v", "-m", "not slow", "-p", "no:cacheprovider"]
    command += [str(Path("tests") / "evonorm" / "test_triton.py")]
    if part.tiny:
        command += ["-k", "test_memory or cant_compile"]
    elif is_there("xdist"):
        command += ["-n", str(min(os.cpu_count() or 1, 12))]
    else:
        part.leave_out("pytest-xdist is not installed: one process may not be done in time")
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder) / "report.xml", part.file.with_suffix(".log")
        with contextlib.suppress(subprocess.TimeoutExpired), log.open("w") as to:
            options = {"cwd": ROOT, "timeout": SECONDS - 20, "stdout": to}
            subprocess.run([*command, f"--junit-xml={report}"], **options)
        if report.exists():
            part.add(read_tests(report))
        else:
            part.leave_out(f"the tests were stopped, or pytest failed: {log} says where")


def read_tests(report: Path) -> dict[str, Any]:
    """Numbers of tests, and the failed ones' messages, from pytest's file in JUnit's format."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failures, skipped = {}, 0
    for case in cases:
        skipped += case.find("skipped") is not None
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                failures[case.get("name", "")] = found.get("message", "")[:500]
    passed = len(cases) - skipped - len(failures)
    return {"passed": passed, "failed": len(failures), "skipped": skipped, "failures": failures}


def layer_part(part: Part) -> None:
    """Time on the device and on the host, and memory, of each layer."""
    defaults = {"dtype": "float32", "compile": False, "channels_last": False}
    options = defaults | LAYER_PARTS[part.name]
    sets = {name: layers.SHAPES[name] for name in SETS}
    if part.name == "growth":
        sets = {"growth": layers.GROWTH}
    if options["compile"]:  # which takes a minute a shape
        sets = {name: sets[name] for name in SETS[:2]}
    if part.tiny:
        sets = {name: [TINY] for name in list(sets)[:3:2]}
    if part.name != "growth" and not is_there("timm"):
        part.leave_out("timm's layers: timm is not installed")
    part.write(dtype=options["dtype"], channels_last=options["channels_last"])
    repeats = 2 if part.tiny else 15
    args = Namespace(device=part.device, norms=None, repeats=repeats, **options)
    for model, shapes in sets.items():
        for shape in shapes:
            print(f"{part.name}: {model} {shape}", file=sys.stderr)
            try:
                part.add(*layers.measure(model, shape, args))
            except Exception as error:  # the other shapes are measured all the same
                traceback.print_exc()
                part.leave_out(f"{model} {shape}: {type(error).__name__}: {one_line(error)[:300]}")


def training_part(part: Part) -> None:
    """Training iterations in float32, then in bfloat16."""
    model, overrides, amp = TRAINING_PARTS[part.name]
    if model in training.DETECTORS and not is_there("detectron2"):
        part.leave_out("Mask R-CNN: Detectron2 is not installed")
        return
    if model in training.GANS:
        bare.stand_in()
        overrides = SMALL_GAN if part.tiny else overrides
    elif part.tiny:
        part.leave_out("Mask R-CNN: no model of it takes milliseconds")
        return
    for more in ([], amp):
        with process_flags(cudnn_benchmark=False):
            steps = training.build_steps(model, part.device, [*overrides, *more])
            taken = training.measure(steps, 2 if part.tiny else 20, part.device)
        about = {"model": model, "overrides": [*overrides, *more], "amp": bool(more)}
        part.add({**about, **training.report(*taken)})


def several(part: Part) -> None:
    """Processes with a GPU each: NCCL."""
    gpus = torch.cuda.device_count() if part.device == "cuda" else 0
    if part.device == "cuda" and gpus < 2:
        part.leave_out(f"NCCL: it takes two GPUs, and there is {gpus or 'none'}")
        return
    world, shape, repeats = max(gpus, 2), (4, 64, 28, 28), 20
    overrides = ["MODEL.SYNC", "True", *WIDE, "SOLVER.BATCH_SIZE", str(64 * world)]
    if part.tiny:
        shape, repeats, overrides = (2, 32, 5, 5), 2, ["MODEL.SYNC", "True", *SMALL_GAN]
    found, report = ranks.run(world, part.device, shape, "biggan-64", overrides, repeats)
    part.add({"model": "biggan-64", "overrides": overrides, "amp": False, "processes": world,
              "layers": found, **report})  # fmt: skip


PARTS: dict[str, Callable[[Part], None]] = {
    "machine": machine,
    "tests": tests,
    **dict.fromkeys(LAYER_PARTS, layer_part),
    **dict.fromkeys(TRAINING_PARTS, training_part),
    "several-gpus": several,
}


def is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
