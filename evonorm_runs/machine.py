"""What a figure depends on, besides its command: machine, versions, commit, processes."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from typing import Any

import torch

from . import distributed
from .checkout import ROOT

PACKAGES = ("torchvision", "numpy", "triton", "detectron2", "evonorm-detection-gan")


def about() -> dict[str, Any]:
    """Time, command, machine, versions, commit and the number of processes, in plain containers."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.argv),
        "host": platform.node(),
        "machine": machine(),
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "versions": versions(PACKAGES),
        "commit": commit(),
    }


def machine() -> str:
    """Cores, processor, system and GPU on one line."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} x {platform.machine()} {platform.system()}{gpu}"


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of Python, of PyTorch, and of those `packages` that are installed."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str | None:
    """The commit of the checkout that holds this package, with a + if files differ; or None."""
    if not (ROOT / ".git").exists():
        return None
    try:
        run = ("git", "-C", str(ROOT))
        options = {"capture_output": True, "text": True, "timeout": 20, "check": True}
        head = subprocess.run([*run, "rev-parse", "HEAD"], **options).stdout.strip()
        status = [*run, "status", "--porcelain", "--untracked-files=no"]
        return head + ("+" if subprocess.run(status, **options).stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):  # no git, or not the owner's checkout
        return None
