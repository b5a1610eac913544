"""What runs here, what is missing, and the command that mends it: `python -m evonorm`.

It imports torch only. The other packages are looked up, not imported.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import shutil
import sys
import warnings
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import torch

from . import EvoNorm, build_norm_act, list_norm_acts, ops

PACKAGE = "evonorm-detection-gan"
BUILD = "pip install --no-build-isolation -e ."
SHOWN = ("triton", "torchvision", "timm", "detectron2", PACKAGE)
# What an extra of the package is for. The others are for those who change the code.
EXTRAS = {
    "detection": "detectors",
    "gan": "BigGAN-deep",
    "repro": "tables and reports",
    "timm": "timm's backbones",
    "ray": "grids and searches on a Ray cluster",
}
MODULES = {"opencv-python-headless": "cv2"}  # which another package may bring too
DATASETS = {
    "coco/annotations/instances_train2017.json": "https://cocodataset.org has it",
    "coco/annotations/instances_val2017.json": "https://cocodataset.org has it",
    "coco/train2017": "https://cocodataset.org has it",
    "coco/val2017": "https://cocodataset.org has it",
    "digits": "python tools/make_digits.py",
}
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's


def main() -> int:
    """Print the report; returns the exit status 0."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backends = ops.backends()  # which tries the kernels of a GPU, and says what is wrong
    said = [str(warning.message) for warning in caught]
    sections = {
        "Versions": _versions(),
        "GPU": _gpu(),
        "Layers": [*_layers(backends), *_slow_on_cpu(backends), *_slow_on_gpu(backends, said)],
        "Detectron2": _detectron2(),
        "Packages": _packages(),
        "Data": _data(),
    }
    for title, lines in sections.items():
        print(title)
        print("\n".join(f"  {line}" for line in lines))
    return 0


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _versions() -> list[str]:
    found = [f"{name} {_version(name) or 'is not installed'}" for name in SHOWN]
    return [f"Python {platform.python_version()}, torch {torch.__version__}", *found]


def _gpu() -> list[str]:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return [f"cuda:{i} is {name}" for i, name in enumerate(names)]
    built = torch.version.cuda
    if not built:
        hint = "; here is one: https://pytorch.org says how to install a PyTorch with CUDA"
        return [f"this PyTorch is built without CUDA{hint if shutil.which('nvidia-smi') else ''}"]
    return [f"this PyTorch is built for CUDA {built}, but sees no GPU; nvidia-smi may say why"]


def _layers(backends: dict[str, str]) -> list[str]:
    """What runs each norm-act on a CPU and on a GPU."""
    plain = "plain PyTorch"
    cpu, gpu = (backends[device].replace("reference", plain) for device in ("cpu", "cuda"))
    program = "C++, step by step" if ops.evaluates(torch.zeros(1, 1, 1, 1)) else plain
    none = f"{plain}, as they have no kernel there"
    kinds = {
        "fused": ("one operator", cpu.replace("native", "C++"), gpu),
        "formula": ("formulas, as those of your own", program, none),
        "module": ("baselines", plain, plain),
    }
    names = defaultdict(list)
    for name in list_norm_acts():
        layer = build_norm_act(name, 32)
        formula = isinstance(layer, EvoNorm)
        names["fused" if formula and layer.kind else "formula" if formula else "module"] += [name]
    return [
        f"{', '.join(names[kind])}: {what}; on a CPU {on_cpu}; on a GPU {on_gpu}"
        for kind, (what, on_cpu, on_gpu) in kinds.items()
    ]


def _slow_on_cpu(backends: dict[str, str]) -> list[str]:
    if backends["cpu"] != "reference":
        return []
    if os.environ.get("EVONORM_REFERENCE") == "1":
        return ["EVONORM_REFERENCE=1 keeps the kernels from running: unset EVONORM_REFERENCE"]
    compilers = [os.environ.get("CXX", "c++"), "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        return [f"the C++ kernels need a C++ compiler, such as g++; install one, then: {BUILD}"]
    built = any(Path(ops.__file__).parent.glob("_cpu.*.so"))
    why = "are of another PyTorch" if built else "are not built"
    return [f"the C++ kernels {why}; in a checkout of the project: {BUILD}"]


def _slow_on_gpu(backends: dict[str, str], said: list[str]) -> list[str]:
    if backends["cuda"] != "reference" or not torch.version.cuda:
        return []
    if os.environ.get("EVONORM_REFERENCE") == "1":
        return []  # said of the CPU
    if not importlib.util.find_spec("triton"):
        return ["the kernels for GPUs need Triton: pip install triton"]
    return said


def _detectron2() -> list[str]:
    spec = importlib.util.find_spec("detectron2")
    if spec is None or not spec.submodule_search_locations:
        return ["it is not installed: python tools/install_detectron2.py"]
    folder = Path(spec.submodule_search_locations[0])
    compiled = any(folder.glob("_C*.so"))
    kind = (
        "built, with its compiled operators"
        if compiled
        else "Python code only: no deformable convolutions, no rotated boxes; for these, uninstall "
        "it and run tools/install_detectron2.py where its repository can be reached"
    )
    env = os.environ.get("DETECTRON2_ENV_MODULE")
    hint = [] if env != "evonorm_d2.env" else ["its own tools take norm-acts (evonorm_d2.env)"]
    return [f"{folder}: {kind}", *hint]


def _packages() -> list[str]:
    """What each part of the project lacks."""
    try:
        required = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return [f"{PACKAGE} is not installed, only found: pip install -e . in its checkout"]
    lacking = defaultdict(list)
    for line in required:
        extra = re.search(r"extra == ['\"]([\w-]+)", line)
        name = re.match(r"[\w.-]+", line)[0]
        there = importlib.util.find_spec(MODULES[name]) if name in MODULES else _version(name)
        if extra and extra[1] in EXTRAS and not there:
            lacking[extra[1]].append(name)
    commands = {
        extra: f"missing: pip install {' '.join(names)}" for extra, names in lacking.items()
    }
    return [f"{what}: {commands.get(extra, 'all there')}" for extra, what in EXTRAS.items()]


def _data() -> list[str]:
    variable = os.environ.get("DETECTRON2_DATASETS")
    root = Path(variable or "datasets").expanduser()
    named = "DETECTRON2_DATASETS" if variable else "DETECTRON2_DATASETS is not set"
    lines = [f"detectors look in {root.absolute()} ({named}), or where DATASETS.COCO says"]
    for name, source in DATASETS.items():
        lines.append(f"{name}: {'there' if (root / name).exists() else f'missing: {source}'}")
    weights = Path(torch.hub.get_dir(), "checkpoints", INCEPTION)
    there = "there" if weights.is_file() else "missing: the first IS or FID downloads it"
    return [*lines, "GANs and classifiers look where DATA.ROOT says", f"{weights}: {there}"]


if __name__ == "__main__":
    argparse.ArgumentParser("python -m evonorm", description=__doc__).parse_args()
    sys.exit(main())
