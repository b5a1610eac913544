"""Train Mask R-CNN with EvoNorm-S0 and BN on handwritten digits, two images a step, and
BigGAN-deep with EvoNorm-S0; evaluate; search for new layers.

It ends with a report, output/demo/report.html. After an interruption, the same command continues
where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch

with warnings.catch_warnings():
    # Importing Detectron2 warns that TorchScript is deprecated; nothing a user could act on.
    warnings.simplefilter("ignore", FutureWarning)
    from evonorm_d2.data import default_folder, write_digits
    from evonorm_gan.checkpoint import load_generator
    from evonorm_gan.config import load_config
    from evonorm_gan.data import open_dataset
    from evonorm_gan.evaluation.metrics import Evaluator, metric_key
    from evonorm_gan.models import build_generator
    from evonorm_runs import machine
    from evonorm_runs.checkout import ROOT
    from evonorm_runs.command_line import run_tool
    from evonorm_runs.distributed import process_flags
    from evonorm_runs.errors import UserError
    from evonorm_runs.folder import read_metrics
    from evonorm_runs.grid import Job, failure, run_jobs

OUTPUT = Path("output/demo")
NORMS = ("EvoNormS0", "BN")
FEW_IMAGES = ("SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.015")  # half of the configs'
GAN = OUTPUT / "biggan_EvoNormS0"
OWN = ("SOLVER.MAX_ITER", "800", "TEST.CACHE_DIR", str(OUTPUT / "cache"))
SEARCHES = {"search_0": "0", "search_1": "1"}  # their seeds
FIGURES = [f"{task}/{ap}" for task in ("bbox", "segm") for ap in ("AP", "AP50", "AP75")]


@run_tool("demo.py", stopped="stopped; the same command goes on", kinds=(OSError, ValueError))
def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        demonstrate()
    except subprocess.CalledProcessError as error:
        return error.returncode  # the tool has printed the reason
    return 0


@process_flags(cudnn_benchmark=False)
def demonstrate() -> None:
    """Run the demo, from the data to the report."""
    step("1/4  Making the data set: scenes of real handwritten digits")
    write_digits(default_folder())
    step("2/4  Training Mask R-CNN with EvoNormS0 and with BN, BigGAN-deep with EvoNormS0,")
    print("     and searching for layers from GN-ReLU on, twice: some eight minutes on two cores;")
    print(f"     tail -f {OUTPUT}/*/output.txt shows how they do", flush=True)
    train()
    step("3/4  Measuring the generator beside real validation scans and an untrained generator")
    detectors = {norm: last_values(OUTPUT / norm) for norm in NORMS}
    generators = measure()
    for name in SEARCHES:
        print(f"\n{OUTPUT / name}", end="", flush=True)
        tool("search_layers.py", "best", OUTPUT / name, "--top", 1)
    sheet, grid = OUTPUT / NORMS[0] / "predictions.png", GAN / "grid.png"
    print(f"\n{'Mask R-CNN, 2 images':<24}{'box AP':>10}{'mask AP':>10}")
    for norm, row in detectors.items():
        print(f"{norm:<24}{row['bbox/AP']:>10.1f}{row['segm/AP']:>10.1f}")
    keys = [metric_key(name, "digits") for name in ("IS", "FID")]
    print(f"\n{'BigGAN-deep, EvoNormS0':<24}{'IS-digits':>10}{'FID-digits':>12}", end="")
    print("   (not comparable with Inception)")
    for images, row in generators.items():
        print(f"{images:<24}{row[keys[0]]:>10.2f}{row[keys[1]]:>12.2f}")
    write_result({"norms": detectors, "gan": generators})
    step("4/4  Drawing predictions and digits, and writing the report over these runs")
    tool("visualize.py", OUTPUT / NORMS[0], "-o", sheet)
    grid.unlink(missing_ok=True)
    tool("sample_gan.py", "grid", GAN, "-o", grid)
    tool("report.py", OUTPUT, "-o", OUTPUT / "report.html")
    print(
        "\nBN takes statistics of the 2 images of a step, EvoNorm-S0 of each image alone. So does\n"
        "GN: docs/results.md has both, with several seeds.\n\n"
        f"Look at      {OUTPUT}/report.html, in a browser: curves, tables, pictures, formulas\n"
        f"             {sheet}, {grid}\n"
        f"             {OUTPUT}/result.json, {OUTPUT}/*/metrics.json\n"
        f"             .venv/bin/tensorboard --logdir {OUTPUT}\n"
        f"A search:    {OUTPUT}/search_* found formulas; each is a NORM, as EvoNormS0 is\n"
        "Real COCO:   put it where Detectron2 expects it (datasets/coco) and type\n"
        "             .venv/bin/python tools/train_net.py --num-gpus 8 --config-file \\\n"
        "               configs/detection/stock/mask_rcnn_R_50_FPN_3x_EvoNormS0.yaml\n"
        "ImageNet:    .venv/bin/torchrun --nproc_per_node 8 tools/train_gan.py --config-file \\\n"
        "               configs/gan/imagenet128.yaml DATA.ROOT path/to/imagenet/train"
    )


def train() -> None:
    """Train all; one thread for each run is faster than two for one."""
    jobs = [Job(GAN, "tools/train_gan.py", "configs/gan/digits.yaml", OWN)]
    config = "configs/detection/digits/mask_rcnn_digits_{}.yaml"
    jobs += [Job(OUTPUT / x, "tools/train_net.py", config.format(x), FEW_IMAGES) for x in NORMS]
    jobs += [
        Job(OUTPUT / name, "tools/search_layers.py", "configs/search/demo.yaml", ("SEED", seed))
        for name, seed in SEARCHES.items()
    ]
    run_jobs(jobs, at_once=min(len(jobs), os.cpu_count() or 1))
    for job in jobs:
        reason = failure(job)
        if reason:
            raise UserError(f"{job.folder}: {reason}")


def measure() -> dict[str, dict[str, float]]:
    """The trained generator's metrics, and those of real images and of no training."""
    own = [str(x) for x in (*OWN, "OUTPUT_DIR", GAN, "DEVICE", "cpu")]
    cfg = load_config(str(ROOT / "configs/gan/digits.yaml"), own)
    evaluator = Evaluator(cfg, open_dataset(cfg), cfg.DEVICE)
    trained, _, _, steps = load_generator(GAN)
    torch.manual_seed(cfg.SEED)
    return {
        "real validation scans": evaluator.evaluate_images(
            open_dataset(cfg, "val").images.split(64)
        ),
        "untrained": evaluator.evaluate(build_generator(cfg)),
        f"after {steps} steps": evaluator.evaluate(trained),
    }


def step(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def tool(name: str, *arguments: object) -> None:
    subprocess.run([sys.executable, ROOT / "tools" / name, *map(str, arguments)], check=True)


def last_values(run: Path) -> dict[str, float]:
    """The last value of each figure in a run's log."""
    lines, _ = read_metrics(run)
    values = {key: value for line in lines for key, value in line.items()}
    return {key: values[key] for key in ["iteration", *FIGURES]}


def write_result(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """The results, with the versions and the machine."""
    result = {
        "command": "make demo",
        "machine": machine.machine(),
        "versions": machine.versions(()),
        **results,
    }
    (OUTPUT / "result.json").write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
