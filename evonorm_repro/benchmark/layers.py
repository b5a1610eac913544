"""Time and memory of a layer; tools/benchmark_layers.py describes what is measured, and how."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor, nn

from evonorm import build_norm_act, ops

from .plot import FAMILIES, find_ours

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
    # BigGAN-deep with 32 channels, as in the config for the digits, and 16 images.
    "biggan-32": [(16, c, r, r) for c, r in ((128, 4), (128, 8), (32, 16), (128, 16), (32, 32))],
    "biggan-64": [
        (16, c, r, r)
        for c, r in ((512, 4), (128, 8), (512, 8), (256, 16), (64, 32), (128, 32), (32, 64))
    ],
    # With 128 channels, as for ImageNet, and 8 images: a block's wide and narrow norms.
    "biggan-128": [
        (8, c, r, r)
        for c, r in (
            *((2048, 4), (2048, 8), (512, 16), (1024, 16), (256, 32), (512, 32)),
            *((128, 64), (256, 64), (64, 128)),
        )
    ],
}
SHAPES["mask-rcnn-2"] = [(2 * n, *rest) for n, *rest in SHAPES["mask-rcnn-1"]]
GROWTH = [(n, 64, 28, 28) for n in (2, 6, 20, 60, 200, 600, 2000)]  # 1e5 to 1e8 elements
ON_CHIP = 256 * 1024  # bytes: the registers of a GPU's multiprocessor, or a core's own cache
WARM_UP = 2  # repetitions
# Clocks for which a GPU is kept busy, some milliseconds, while the kernels to be timed are queued.
BUSY, MOST_BUSY = 2**22, 2**30
NATIVE = ("GN-ReLU", "BN-ReLU")  # the layers that a user names are compared with these


class Copy(nn.Module):
    """The fastest that a layer could be: each value is read and written once."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0


class Conditional(nn.Module):
    """A norm-act as BigGAN's generator calls it: weight and bias (N, C), one per sample."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, groups: int) -> None:
        super().__init__()
        self.norm = build_norm_act(name, shape[1], affine=False, num_groups=groups)
        self.weight = nn.Parameter(torch.ones(shape[:2], dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(shape[:2], dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, weight=self.weight, bias=self.bias)


def backends(device: str) -> list[str]:
    """The backends of our layers on this device. The first one is the fastest."""
    fastest = ops.backends()[device].replace(",", " ").split()[0]
    return list(dict.fromkeys([fastest, "reference"]))


def contestants(
    model: str, shape: tuple[int, ...], dtype: torch.dtype, args: argparse.Namespace
) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {"copy": Copy()}
    if args.norms:
        layers |= {norm: named(norm, model, shape, dtype) for norm in (*NATIVE, *args.norms)}
        return {name: layer.to(args.device) for name, layer in layers.items()}
    for kind, norm in FAMILIES.items():
        for backend in backends(args.device)[: 1 if model == "growth" else None]:
            if is_conditional(model):
                layer = Conditional(f"EvoNorm{kind}", shape, dtype, groups=32)
            else:
                layer = build_norm_act(f"EvoNorm{kind}", shape[1])
            layers[f"{kind} {backend}"] = layer
        if is_conditional(model):
            # The paper's 16 groups; timm's layers take no weight and bias per sample.
            layers[f"{norm} + ReLU"] = Conditional(f"{norm}-ReLU", shape, dtype, groups=16)
            continue
        layers[f"{norm} + ReLU"] = nn.Sequential(native(norm, shape, dtype), nn.ReLU(inplace=True))
        if model != "growth":
            layers[f"{norm} + SiLU"] = nn.Sequential(native(norm, shape, dtype), nn.SiLU())
            layers |= timm_layers(kind, shape[1], args.compile)
    return {name: layer.to(args.device) for name, layer in layers.items()}


def named(norm: str, model: str, shape: tuple[int, ...], dtype: torch.dtype) -> nn.Module:
    """The layer of a name or a formula, as the model calls it."""
    if is_conditional(model):
        return Conditional(norm, shape, dtype, groups=32)
    return build_norm_act(norm, shape[1])


def is_conditional(model: str) -> bool:
    return model.startswith("biggan")


def native(norm: str, shape: tuple[int, ...], dtype: torch.dtype) -> nn.Module:
    if norm == "BN":
        return nn.BatchNorm2d(shape[1])
    return nn.GroupNorm(32, shape[1], dtype=dtype)  # on a GPU its dtype must be x's


def timm_layers(kind: str, channels: int, compiled: bool) -> dict[str, nn.Module]:
    """timm's layer of this kind, also compiled by torch.compile if `compiled`; {} without timm."""
    try:
        from timm import layers as timm
    except ImportError:
        return {}
    options = {"groups": 32} if kind == "S0" else {}
    build = functools.partial(getattr(timm, f"EvoNorm2d{kind}"), channels, **options)
    layers = {f"{kind} timm": build()}
    if compiled:
        layers[f"{kind} timm, compiled"] = torch.compile(build(), dynamic=False)
    return layers


def forward(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    with torch.no_grad():
        layer(x)


def both(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)


def seconds(run: Callable[..., None], *args: Any) -> tuple[float, float]:
    """The seconds that a call takes on the device of its last argument, and on the host.

    On a GPU the kernels are queued while it is busy with something else. So the first number has
    no time of the host in it; if the host was not in time, the call is repeated.
    """
    if not args[-1].is_cuda:
        taken = _on_host(run, *args)
        return taken, taken
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    busy = BUSY
    while True:
        _gibibyte(args[-1].device).sum()  # fills the cache with what need not be written back
        torch.cuda._sleep(busy)
        begin.record()
        on_host = _on_host(run, *args)
        end.record()
        in_time = not begin.query()
        end.synchronize()
        if in_time or busy >= MOST_BUSY:
            return begin.elapsed_time(end) / 1e3, on_host
        busy *= 4


def _on_host(run: Callable[..., None], *args: Any) -> float:
    start = time.perf_counter()
    run(*args)
    return time.perf_counter() - start


@functools.lru_cache
def _gibibyte(device: torch.device) -> Tensor:
    return torch.zeros(2**28, device=device)


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """The bytes kept for the backward pass, including the input."""
    storages = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    own = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    del y
    return sum(s.nbytes() for at, s in storages.items() if at not in own)


def peak_bytes(layer: nn.Module, x: Tensor, dy: Tensor) -> int:
    """The most bytes that a GPU holds in a forward and backward pass, in addition to x and dy."""
    torch.cuda.synchronize(x.device)
    before = torch.cuda.memory_allocated(x.device)
    torch.cuda.reset_peak_memory_stats(x.device)
    both(layer, x, dy)
    return torch.cuda.max_memory_allocated(x.device) - before


def least_bytes(name: str, shape: tuple[int, ...], itemsize: int, run: str) -> int:
    """The bytes that the best schedule moves: `of copy` in tools/benchmark_layers.py."""
    n, c, h, w = shape
    training = run == "both"
    if name == "copy":
        shared = 0
    elif name.startswith("S0"):
        shared = h * w * c // 32
    else:  # in evaluation B0's statistics are of single samples
        shared = h * w * (n if training else 1)
    tensors = 2 + (shared * itemsize > ON_CHIP)  # x, y
    if training and name == "copy":
        tensors += 2  # dy, dx
    elif training:
        again = 2 * shared * itemsize > ON_CHIP
        tensors += 3 + 2 * again  # dy, x, dx; dy and x
    return tensors * n * c * h * w * itemsize


def of_copy(ours: dict[str, Any], copy: dict[str, Any]) -> float:
    """The bandwidth of a result over that of the copy of the same shape and pass."""
    share = ours["least_bytes"] / copy["least_bytes"]
    return share * copy["median_ms"] / ours["median_ms"]


def measure(model: str, shape: tuple[int, ...], args: argparse.Namespace) -> list[dict[str, Any]]:
    torch.compiler.reset()  # otherwise it stops compiling after some shapes
    dtype = getattr(torch, args.dtype)
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).to(args.device, dtype) for _ in range(2))
    if args.channels_last:
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    layers = contestants(model, shape, dtype, args)
    turns = [(name, run) for run in (forward, both) for name in layers]
    times: dict[tuple[str, Callable], list[tuple[float, float]]] = {turn: [] for turn in turns}
    shuffle = random.Random(0).shuffle  # a layer may leave a warm cache to the next
    for _ in range(WARM_UP + args.repeats):
        shuffle(turns)
        for name, run in turns:
            layer = layers[name].train(run is both)
            of_x = x.detach().requires_grad_(run is both)
            with chosen_backend(name):
                times[name, run].append(seconds(run, layer, of_x, dy))
    memory = {}
    for name, layer in layers.items():
        layer.train()
        of_x = x.detach().requires_grad_()
        with chosen_backend(name):
            memory[name] = {"saved_bytes": saved_bytes(layer, of_x)}
            if x.is_cuda:
                memory[name]["peak_bytes"] = peak_bytes(layer, of_x, dy)
    results = []
    for (name, run), taken in times.items():
        on_device, on_host = zip(*taken[WARM_UP:])
        result = {
            "model": model,
            "shape": shape,
            "layer": name,
            "pass": "forward" if run is forward else "forward + backward",
            **summary(on_device, "ms", 1e3),
            **(summary(on_host, "host_us", 1e6) if x.is_cuda else {}),
            **memory[name],
        }
        if not args.norms and (name == "copy" or name[:2] in FAMILIES):
            result["least_bytes"] = least_bytes(name, shape, x.element_size(), run.__name__)
        results.append(result)
    return results


def chosen_backend(name: str) -> contextlib.AbstractContextManager:
    return ops.reference_only() if "reference" in name else contextlib.nullcontext()


def summary(taken: Sequence[float], unit: str, scale: float = 1.0) -> dict[str, Any]:
    low, median, high = (scale * q for q in quartiles(taken))
    return {
        f"median_{unit}": median,
        f"quartiles_{unit}": [low, high],
        f"best_{unit}": scale * min(taken),
    }


def quartiles(values: Sequence[float]) -> list[float]:
    """The first quartile, the median and the third quartile, within the range of the values."""
    return statistics.quantiles(values, n=4, method="inclusive")


def table(results: list[dict[str, Any]]) -> str:
    if results[0]["model"] == "growth":
        return growth_table(results)
    if "least_bytes" not in results[0]:
        return norms_table(results)
    lines = []
    for conditional in (False, True):
        some = [r for r in results if is_conditional(r["model"]) == conditional]
        for kind in FAMILIES if some else ():
            lines += family_table(some, kind, ", conditional" if conditional else "")
    return "\n".join(lines)


def norms_table(results: list[dict[str, Any]]) -> str:
    """For each pass and shape a row per layer that the user named: time, ratios and memory."""
    cells = [["layer", "pass", "shape", "ms", *(f"/ {norm}" for norm in NATIVE), "saved MB"]]
    of = {(r["model"], tuple(r["shape"]), r["pass"], r["layer"]): r for r in results}
    for (model, shape, which, layer), r in of.items():
        native = (of[model, shape, which, norm]["median_ms"] for norm in NATIVE)
        ratios = (f"{r['median_ms'] / ms:.2f}" for ms in native)
        where = row_name(model, shape)
        megabytes = f"{r['saved_bytes'] / 1e6:.2f}"
        cells.append([layer, which, where, f"{r['median_ms']:.3f}", *ratios, megabytes])
    return "\n".join(align(cells))


def family_table(results: list[dict[str, Any]], kind: str, about: str) -> list[str]:
    """Lines that compare an EvoNorm with a copy and the native norm: times, ratios, memory."""
    norm = FAMILIES[kind]
    names = list(dict.fromkeys(r["layer"] for r in results if r["layer"][:2] in (kind, norm)))
    names = ["copy", *names]
    ours, timm = find_ours(names, kind), f"{kind} timm"
    of = {(r["model"], tuple(r["shape"]), r["pass"], r["layer"]): r for r in results}
    rows = list(dict.fromkeys(key[:2] for key in of))
    lines = []
    for which in ("forward + backward", "forward"):
        ratios = [f"{kind}/{norm}", *([f"timm/{kind}"] if timm in names else []), "of copy"]
        cells = [[f"{which}{about}, ms", *names, *ratios]]
        for model, shape in rows:
            found = {name: of[model, shape, which, name] for name in names}
            ms = {name: r["median_ms"] for name, r in found.items()}
            values = [*ms.values(), ms[ours] / ms[f"{norm} + ReLU"]]
            values += [ms[timm] / ms[ours]] if timm in names else []
            percent = f"{100 * of_copy(found[ours], found['copy']):.0f} %"
            cells.append([row_name(model, shape), *(f"{v:.2f}" for v in values), percent])
        lines += ["", *align(cells)]
    on_gpu = "peak_bytes" in results[0]
    # PyTorch counts the bytes in use on a GPU only.
    what = "peak beside input and dy" if on_gpu else "saved for the backward pass"
    cells = [[f"{what}, MB", *names]]
    for model, shape in rows:
        found = (of[model, shape, "forward + backward", name] for name in names)
        sizes = (r["peak_bytes" if on_gpu else "saved_bytes"] for r in found)
        cells.append([row_name(model, shape), *(f"{size / 1e6:.2f}" for size in sizes)])
    return [*lines, "", *align(cells)]


def growth_table(results: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(r["layer"] for r in results))
    lines = []
    for which in ("forward + backward", "forward"):
        cells = [[f"{which}, ns per element", "elements", *names]]
        for shape in dict.fromkeys(tuple(r["shape"]) for r in results):
            elements = torch.Size(shape).numel()
            ms = {
                r["layer"]: r["median_ms"]
                for r in results
                if (tuple(r["shape"]), r["pass"]) == (shape, which)
            }
            values = (f"{1e6 * ms[name] / elements:.3f}" for name in names)
            cells.append([str(shape), f"{elements:.1e}", *values])
        lines += ["", *align(cells)]
    return "\n".join(lines)


def row_name(model: str, shape: tuple[int, ...]) -> str:
    return f"{model} {shape}"


def align(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines of text: the first column flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]
        ).rstrip()
        for row in rows
    ]


def machine(device: str) -> dict[str, Any]:
    """The command, the machine and the versions, which go into each result file."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("triton", "timm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "command": shlex.join(["python", f"tools/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "backends": ops.backends(),
        "versions": versions,
    }


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def set_up(args: argparse.Namespace) -> None:
    """Settle device and threads. Raises ValueError for a wrong --device, --repeats or --threads."""
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device not in ("cpu", "cuda"):
        raise ValueError(f"--device is {args.device!r}; known are cpu, cuda")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but PyTorch sees no GPU")
    if args.repeats < 2:
        raise ValueError(f"--repeats is {args.repeats}, but quartiles need 2 at least")
    if args.threads < 1:
        raise ValueError(f"--threads is {args.threads}, but should be 1 at least")
    torch.set_num_threads(args.threads)


def chosen_shapes(args: argparse.Namespace) -> dict[str, list[tuple[int, ...]]]:
    if args.growth:
        return {"growth": GROWTH}
    for name in args.shapes:
        if name not in SHAPES:
            known = ", ".join(sorted(SHAPES))
            raise ValueError(f"--shapes: {name!r} is not known; known are {known}")
    return {name: SHAPES[name] for name in args.shapes}


def common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write everything measured to this new file")
