"""How long the host takes for a call on a GPU, measured without a GPU.

The CPU's tensors stand in for the GPU's, and nothing is launched, so what is left is Python,
PyTorch and Triton's look-up. The native layers compute on the CPU, but a map is so small that this
takes next to nothing. The launches themselves are in neither time.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from evonorm import build_norm_act
from evonorm.ops import cuda, cuda_plan

from .layers import FAMILIES, native
from .no_gpu import no_gpu

SHAPE = (2, 128, 4, 4)  # with enough channels for one launch of B0
CALLS, REPEATS = 5, 200


def both(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    layer(x).backward(dy)


def microseconds(layers: dict[str, nn.Module]) -> dict[str, float]:
    """The least time of a forward and a backward pass of each layer; the layers take turns."""
    x, dy = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE)
    best: dict[str, float] = {}
    for _ in range(REPEATS):
        for name, layer in layers.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                both(layer, x, dy)
            taken = 1e6 * (time.perf_counter() - start) / CALLS
            best[name] = min(best.get(name, taken), taken)
    return best


def measure(arch: int, processors: int) -> list[dict[str, Any]]:
    """A row for S0 and for B0: its time, that of the native layers, and the ratio."""
    layers: dict[str, nn.Module] = {}
    for kind, norm in FAMILIES.items():
        layers[kind] = build_norm_act(f"EvoNorm{kind}", SHAPE[1])
        layers[norm] = nn.Sequential(native(norm, SHAPE, torch.float32), nn.ReLU(inplace=True))
    library = torch.library.Library("evonorm", "IMPL")
    for name in ("forward", "backward"):
        library.impl(name, getattr(cuda, name), "CPU", allow_override=True)
    try:
        with no_gpu(arch), cuda_plan.as_if_on(processors):
            best = microseconds(layers)
    finally:
        library._destroy()
    return [
        {
            "layer": kind,
            "host_us": best[kind],
            "native": f"{norm} + ReLU",
            "native_us": best[norm],
            "ratio": best[kind] / best[norm],
        }
        for kind, norm in FAMILIES.items()
    ]


def as_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells, below a row of heads."""
    cells = [[f"{v:.2f}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    return [[key.replace("_us", " µs") for key in rows[0]], *cells]
