"""Count a detector's parameters, multiply-adds (MAdds) and activations as it trains on one image
of 1024x1024 pixels, or compare its costs with those in the paper's table 4."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

with warnings.catch_warnings():
    # Importing Detectron2 warns that TorchScript is deprecated; nothing a user could act on.
    warnings.simplefilter("ignore", FutureWarning)
    import detectron2

    from evonorm_d2.analysis import IMAGE_SIZE, Complexity, analyze
    from evonorm_d2.run_config import load_config
    from evonorm_repro.paper import TABLE_4
    from evonorm_runs.checkout import ROOT
    from evonorm_runs.command_line import run_tool

PAPER_CONFIGS = ROOT / "configs/detection/paper"
NAMES = {"EvoNormB0": "EvoNorm-B0", "EvoNormS0": "EvoNorm-S0"}  # the names in the paper


@run_tool("analyze_model.py", kinds=(ValueError, OSError))
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config-file", type=Path, metavar="YAML", help="the model to count")
    what.add_argument(
        "--paper-layout", action="store_true", help="compare with the paper's table 4"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the exact counts here")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="change the config")
    args = parser.parse_args()
    if args.json and args.json.exists():
        raise FileExistsError(f"{args.json} exists already: remove it or choose another name")
    if args.paper_layout:
        if args.overrides:
            raise ValueError("--paper-layout takes no overrides; use --config-file")
        result, table = paper_layout()
    else:
        result, table = one_model(args.config_file, args.overrides)
    if args.json:
        about = {"command": shlex.join(["tools/analyze_model.py", *sys.argv[1:]]), **versions()}
        args.json.write_text(json.dumps({**about, **result}, indent=2) + "\n")
    print(table)
    return 0


def one_model(path: Path, overrides: list[str]) -> tuple[dict, str]:
    counts = count(path, overrides)
    rows = [("part", "parameters (M)", "MAdds (B)", "of that, norms (B)", "activations (M)")]
    for name, c in counts.items():
        cells = (c.parameters / 1e6, c.madds / 1e9, c.norm_madds / 1e9, c.activations / 1e6)
        rows.append((name, *(f"{cell:.3f}" for cell in cells)))
    result = {
        "config": str(path),
        "overrides": overrides,
        "image_size": IMAGE_SIZE,
        "parts": {name: as_dict(c) for name, c in counts.items()},
    }
    return result, align(rows)


def paper_layout() -> tuple[dict, str]:
    head = ("layer", "Params (M)", "paper", "diff.", "MAdds (B)", "paper", "diff.", "in %")
    rows = [("backbone", *head, "convs and fcs (B)")]
    results = []
    for model, norm in ((model, norm) for model, rows in TABLE_4.items() for norm in rows):
        paper_madds, paper_params = map(float, TABLE_4[model][norm].split()[-2:])
        layer, backbone = NAMES.get(norm, norm), f"{model}-FPN"
        config = norm.removesuffix("-ReLU")  # Detectron2's BN and GN are followed by ReLUs
        path = PAPER_CONFIGS / f"mask_rcnn_{model.replace('-', '_')}_FPN_{config}.yaml"
        total = count(path)["total"]
        params, madds = total.parameters / 1e6, total.madds / 1e9
        rows.append(
            (
                backbone,
                layer,
                f"{params:.4f}",
                f"{paper_params:.2f}",
                f"{round(params, 2) - paper_params:+.2f}",
                f"{madds:.3f}",
                f"{paper_madds:.1f}",
                f"{madds - paper_madds:+.3f}",
                f"{100 * (madds / paper_madds - 1):+.2f}",
                f"{total.conv_madds / 1e9:.3f}",
            )
        )
        paper = {"parameters_in_millions": paper_params, "madds_in_billions": paper_madds}
        key = {"backbone": backbone, "layer": layer}
        results.append({**key, **as_dict(total), "paper": paper})
    return {"image_size": IMAGE_SIZE, "table_4": results}, align(rows, left=2)


def count(path: Path, overrides: Sequence[str] = ()) -> dict[str, Complexity]:
    # On "meta" there are shapes but no values, so it takes neither time nor a GPU.
    return analyze(load_config(str(path), [*overrides, "MODEL.DEVICE", "meta"]))


def as_dict(counts: Complexity) -> dict[str, int]:
    return {**asdict(counts), "madds": counts.madds}


def versions() -> dict[str, dict[str, str]]:
    libraries = {m.__name__: m.__version__ for m in (torch, detectron2)}
    return {"versions": {"python": platform.python_version(), **libraries}}


def align(rows: list[tuple[str, ...]], left: int = 1) -> str:
    """Rows of cells as lines of text: the first columns flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
