"""Train Mask R-CNN with EvoNorm-S0 and with GN on handwritten digits, evaluate, and compare.

Run again after an interruption, it goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path

import torch

with warnings.catch_warnings():
    # Importing Detectron2 warns that TorchScript is deprecated; nothing a user could act on.
    warnings.simplefilter("ignore", FutureWarning)
    from evonorm_d2.data import default_folder, write_digits

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = Path("output/demo")
NORMS = ("EvoNormS0", "GN")
FIGURES = [f"{task}/{ap}" for task in ("bbox", "segm") for ap in ("AP", "AP50", "AP75")] + ["time"]


def main() -> int:
    step("1/4  Making the data set: scenes of real handwritten digits")
    write_digits(default_folder())
    for i, norm in enumerate(NORMS, 2):
        step(f"{i}/4  Training Mask R-CNN R-50-FPN with {norm}, about four minutes on two cores")
        config = ROOT / f"configs/detection/digits/mask_rcnn_digits_{norm}.yaml"
        tool("train_net.py", "--config-file", config, "--resume", "OUTPUT_DIR", OUTPUT / norm)
    step("4/4  Drawing predictions beside the ground truth")
    sheet = OUTPUT / NORMS[0] / "predictions.png"
    tool("visualize.py", OUTPUT / NORMS[0], "-o", sheet)
    results = {norm: last_values(OUTPUT / norm) for norm in NORMS}
    print(f"\n{'norm':<12}{'box AP':>8}{'mask AP':>9}{'s/iteration':>13}")
    for norm, row in results.items():
        print(f"{norm:<12}{row['bbox/AP']:>8.1f}{row['segm/AP']:>9.1f}{row['time']:>13.2f}")
    write_result(results)
    print(
        "One run each of a small task: that both learn is what it shows, not which is better.\n\n"
        f"Look at      {sheet}\n"
        f"             {OUTPUT}/result.json, {OUTPUT}/*/metrics.json\n"
        f"             .venv/bin/tensorboard --logdir {OUTPUT}\n"
        "Real COCO:   put it where Detectron2 expects it (datasets/coco) and type\n"
        "             .venv/bin/python tools/train_net.py --num-gpus 8 --config-file \\\n"
        "               configs/detection/stock/mask_rcnn_R_50_FPN_3x_EvoNormS0.yaml"
    )
    return 0


def step(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def tool(name: str, *arguments: object) -> None:
    subprocess.run([sys.executable, ROOT / "tools" / name, *map(str, arguments)], check=True)


def last_values(run: Path) -> dict[str, float]:
    """The last value of each of a run's figures; time is seconds per iteration."""
    lines = (run / "metrics.json").read_text().splitlines()
    values = {key: value for line in lines for key, value in json.loads(line).items()}
    return {key: values[key] for key in ["iteration", *FIGURES]}


def write_result(results: dict[str, dict[str, float]]) -> None:
    """What was measured, with what and where."""
    result = {
        "command": "make demo",
        "machine": f"{os.cpu_count()} x {platform.machine()} {platform.system()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "norms": results,
    }
    (OUTPUT / "result.json").write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the tool has said why
    except (OSError, ValueError) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        sys.exit(2)
