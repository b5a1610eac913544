"""Kills a training wherever it is about to change its folder, goes on with it, and compares.

    python kill.py KIND FOLDER SIGNAL FIRST EVERY

Places are the times at which a file is opened for writing, renamed or removed. FIRST is the first
one taken, EVERY the distance to the next. Prints a JSON list of [place, what is wrong or null].
Each training is a fork of this process, as the imports take longer than it does.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
AP = {"iteration", *(f"{task}/{ap}" for task in ("bbox", "segm") for ap in ("AP", "AP50", "APs"))}
TIMES = {"time", "data_time", "seconds", "images_per_second", "eta_seconds"}
GAN = (
    "DEVICE cpu MODEL.DIM_Z 8 MODEL.G_CH 8 MODEL.D_CH 8 SOLVER.BATCH_SIZE 4 SOLVER.MAX_ITER 3 "
    "SOLVER.LOG_PERIOD 1 SOLVER.CHECKPOINT_PERIOD 1 SOLVER.SAMPLE_PERIOD 2 TEST.EVAL_PERIOD -1"
)
CLASSIFIER = (
    "DEVICE cpu SOLVER.IMS_PER_WORKER 400 SOLVER.EPOCHS 2 SOLVER.WARMUP_EPOCHS 1.0 "
    "SOLVER.LOG_PERIOD 2 TEST.BATCH_SIZE 512"
)
KINDS = {  # the tool, its config, settings, and the file that a finished run ends with
    "gan": ("train_gan", "configs/gan/digits.yaml", GAN.split(), "model_0000003.pth"),
    "classifier": (
        "train_classifier",
        "configs/classification/digits.yaml",
        CLASSIFIER.split(),
        "checkpoint.pth",
    ),
    # The settings of a small detector come from the caller.
    "detection": (
        "train_net",
        "configs/detection/digits/mask_rcnn_digits_EvoNormB0.yaml",
        os.environ.get("SMALL_DETECTOR", "").split("|"),
        "model_final.pth",
    ),
}


def main(kind: str, folder: Path, name: str, first: int, every: int) -> None:
    whole = folder / "whole"
    status, places = fork(kind, whole)
    if status:
        sys.exit(
            f"the run that nobody kills ends with {status}: {(folder / 'printed').read_text()}"
        )
    found = []
    for place in range(first, places, every):
        killed = folder / "killed"
        fork(kind, killed, place, signal.Signals[name])
        found.append([place, compare(kind, whole, killed)])
        shutil.rmtree(killed)
    print(json.dumps(found))


def compare(kind: str, whole: Path, killed: Path) -> str | None:
    """Go on with a run that was killed; says what is then different from one that was not."""
    status, _ = fork(kind, killed)
    if status:
        return f"status {status}: {(killed.parent / 'printed').read_text()[-500:]}"
    file = KINDS[kind][-1]
    a, b = (torch.load(run / file, weights_only=True) for run in (whole, killed))
    for state in (a, b):
        state.pop("config", None)  # it names its folder
    if not equal(a, b):
        return f"{file} differs"
    if lines(kind, whole) != lines(kind, killed):
        return f"metrics.json differs: {lines(kind, killed)} instead of {lines(kind, whole)}"
    left = [path.name for path in killed.iterdir() if path.suffix in (".partial", ".lock")]
    return f"{left} are left" if left else None


def lines(kind: str, run: Path) -> str:
    """What is in metrics.json. Detectron2's losses are medians since the process began."""
    found = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    if kind == "detection":
        found = [line for line in found if "bbox/AP" in line]
        return repr([{k: v for k, v in line.items() if k in AP} for line in found])
    return repr([{k: v for k, v in line.items() if k not in TIMES} for line in found])


def equal(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def fork(
    kind: str, run: Path, place: int | None = None, what: int = signal.SIGKILL
) -> tuple[int, int]:
    """Train in another process, which gets a signal at a place; its status, and the places seen."""
    end, begin = os.pipe()
    child = os.fork()
    if child == 0:
        seen = watch(run, place, what)
        status = 1
        try:
            status = train(kind, run)
        finally:
            os.write(begin, b"%d" % len(seen))
            os._exit(status)
    os.close(begin)
    with open(end, "rb") as pipe:
        count = int(pipe.read() or 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), count


def watch(run: Path, place: int | None, what: int) -> list[str]:
    """The changes of files in the run's folder, one after the other."""
    seen: list[str] = []

    def hook(event: str, args: tuple) -> None:
        changes = event in ("os.rename", "os.remove", "os.truncate")
        if event == "open" and args[1] is not None:
            changes = not set(args[1]).isdisjoint("wax+")
        if changes and str(args[0]).startswith(str(run)):
            if len(seen) == place:
                os.kill(os.getpid(), what)
            seen.append(event)

    sys.addaudithook(hook)
    return seen


def train(kind: str, run: Path) -> int:
    name, config, settings, _ = KINDS[kind]
    with open(run.parent / "printed", "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    options = ["--config-file", str(ROOT / config), "--resume", *settings, "OUTPUT_DIR", str(run)]
    sys.argv = [f"{name}.py", *options]
    return importlib.import_module(name).main()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in (KINDS[sys.argv[1]][0], "torch.utils.tensorboard", "sklearn.datasets"):
        importlib.import_module(name)  # once, not in each fork
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
