"""Time and memory of a layer: EvoNorm by backend, timm's, native norms with ReLU or SiLU, a copy.

    python tools/benchmark_layers.py                           # float32, Mask R-CNN and BigGAN-deep
    python tools/benchmark_layers.py --shapes mask-rcnn-heads --dtype bfloat16 --json results.json

All run in turns, one call each per repetition, so that whatever else the machine does hits all of
them alike. Times are medians; the JSON file has the quartiles too. Ratios are to the native norm
with an in-place ReLU, and of timm's layer to ours. The forward pass alone is in evaluation mode.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor, nn

from evonorm import build_norm_act, ops

# Inputs (N, C, H, W) of the norm-acts, without those that differ by little.
SHAPES = {
    # R-50-FPN on images of 800 x 1333, padded to 800 x 1344: stem, res2 to res5, RPN on P3.
    "mask-rcnn-1": [
        (1, 64, 400, 672),
        (1, 64, 200, 336),
        (1, 128, 100, 168),
        (1, 256, 50, 84),
        (1, 512, 25, 42),
        (1, 256, 100, 168),
    ],
    # 512 RoIs in the box head, 128 in the mask head and after its deconvolution.
    "mask-rcnn-heads": [(512, 256, 7, 7), (128, 256, 14, 14), (128, 256, 28, 28)],
    # BigGAN-deep, 128 channels, 8 images of 128 x 128: the wide and the narrow norms of a block.
    "biggan-128": [
        (8, 2048, 4, 4),
        (8, 512, 8, 8),
        (8, 2048, 16, 16),
        (8, 1024, 32, 32),
        (8, 256, 32, 32),
        (8, 512, 64, 64),
        (8, 128, 64, 64),
        (8, 256, 128, 128),
    ],
}
SHAPES["mask-rcnn-2"] = [(2 * n, *rest) for n, *rest in SHAPES["mask-rcnn-1"]]


class Copy(nn.Module):
    """The limit: each value is read and written once."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0


def contestants(channels: int, compiled: bool) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {"copy": Copy()}
    norms = {"S0": lambda: nn.GroupNorm(32, channels), "B0": lambda: nn.BatchNorm2d(channels)}
    for kind, norm in norms.items():
        for backend in ("native", "reference"):
            if backend == "reference" or ops.backends()["cpu"].startswith("native"):
                layers[f"{kind} {backend}"] = build_norm_act(f"EvoNorm{kind}", channels)
        short = "GN" if kind == "S0" else "BN"
        layers[f"{short} + ReLU"] = nn.Sequential(norm(), nn.ReLU(inplace=True))
        layers[f"{short} + SiLU"] = nn.Sequential(norm(), nn.SiLU())
        with contextlib.suppress(ImportError):
            from timm import layers as timm

            options = {"groups": 32} if kind == "S0" else {}
            build = getattr(timm, f"EvoNorm2d{kind}")
            layers[f"{kind} timm"] = build(channels, **options)
            if compiled:
                layers[f"{kind} timm, compiled"] = torch.compile(build(channels, **options))
    return layers


def forward(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    with torch.no_grad():
        layer(x)


def both(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)


def seconds(run: Callable[..., None], *args: Any) -> float:
    start = time.perf_counter()
    run(*args)
    return time.perf_counter() - start


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """What is kept for the backward pass, the input included."""
    storages = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    del y
    return sum(s.nbytes() for at, s in storages.items() if at not in own)


def measure(shape: tuple[int, ...], args: argparse.Namespace) -> list[dict[str, Any]]:
    dtype = getattr(torch, args.dtype)
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    if args.channels_last:
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    layers = contestants(shape[1], args.compile)
    times: dict[tuple[str, str], list[float]] = {}
    for repetition in range(args.repeats + 2):  # two to warm up
        for run in (forward, both):
            for name, layer in layers.items():
                layer.train(run is both)
                of_x = x.detach().requires_grad_(run is both)
                with ops.reference_only() if "reference" in name else contextlib.nullcontext():
                    taken = seconds(run, layer, of_x, dy)
                if repetition > 1:
                    times.setdefault((name, run.__name__), []).append(taken)
    results = []
    for (name, run), taken in times.items():
        low, median, high = statistics.quantiles(taken, n=4)
        results.append(
            {
                "shape": shape,
                "layer": name,
                "pass": "forward" if run == "forward" else "forward + backward",
                "median_ms": median * 1e3,
                "quartiles_ms": [low * 1e3, high * 1e3],
                "best_ms": min(taken) * 1e3,
                "saved_bytes": saved_bytes(layers[name].train(), x.detach().requires_grad_()),
            }
        )
    return results


def table(results: list[dict[str, Any]]) -> str:
    shapes = list(dict.fromkeys(tuple(r["shape"]) for r in results))
    names = list(dict.fromkeys(r["layer"] for r in results))
    of = {(tuple(r["shape"]), r["layer"], r["pass"]): r for r in results}

    def rows(title: str, columns: list[str], value: Callable[[Any, str], float]) -> list[str]:
        head = f"{title:28}" + "".join(f"{column:>14}" for column in columns)
        return ["", head] + [
            f"{str(shape):28}" + "".join(f"{value(shape, column):14.2f}" for column in columns)
            for shape in shapes
        ]

    lines = []
    for which in ("forward + backward", "forward"):
        ms = {(s, n): of[s, n, which]["median_ms"] for s in shapes for n in names}
        ratios = {}
        for kind, norm in (("S0", "GN + ReLU"), ("B0", "BN + ReLU")):
            ours = next(n for n in names if n.startswith(kind))
            ratios[f"{kind} / {norm[:2]}"] = (ours, norm)
            if f"{kind} timm" in names:
                ratios[f"timm / {kind}"] = (f"{kind} timm", ours)
        lines += rows(f"{which}, ms", names, lambda s, n, ms=ms: ms[s, n])
        lines += rows(
            f"{which}, ratio",
            list(ratios),
            lambda s, c, ms=ms, ratios=ratios: ms[s, ratios[c][0]] / ms[s, ratios[c][1]],
        )
    lines += rows("saved, MB", names, lambda s, n: of[s, n, "forward"]["saved_bytes"] / 1e6)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ["mask-rcnn-1", "mask-rcnn-2", "mask-rcnn-heads", "biggan-128"]
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=default)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--repeats", type=int, default=15, help="of each call (default 15)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="torch.compile of timm's, too")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    args = parser.parse_args()
    if args.json and args.json.exists():
        print(f"{args.json} exists: name another file, or remove it first", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    results = []
    for name in args.shapes:
        for shape in SHAPES[name]:
            print(f"{name} {shape}", file=sys.stderr)
            results += [{"model": name, **result} for result in measure(shape, args)]
    print(table(results))
    if args.json:
        machine = {
            "command": " ".join(["python", *sys.argv]),
            "dtype": args.dtype,
            "channels_last": args.channels_last,
            "threads": args.threads,
            "torch": torch.__version__,
            "backends": ops.backends(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        }
        args.json.write_text(json.dumps({**machine, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
