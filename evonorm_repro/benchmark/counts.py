"""What a GPU has to do for an EvoNorm, counted in the machine code that Triton makes.

A launch takes at least as long as its instructions take to be issued, and as those of each unit of
a multiprocessor take there. The numbers of instructions a clock are those of NVIDIA's CUDA C++
Programming Guide, section "Arithmetic Instructions".
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from evonorm.ops import cuda, cuda_plan

from .layers import is_conditional, least_bytes
from .no_gpu import Launch, no_gpu


class GPU(NamedTuple):
    """A model of a GPU, for estimates."""

    name: str
    processors: int
    gigahertz: float
    terabytes: float  # a second, of a copy
    units: dict[str, float]  # instructions of a warp that a multiprocessor takes a clock


UNITS = {
    "mufu": r"MUFU",  # reciprocal, square root, exponential
    "memory": r"LD[GSLC]?\b|ST[GSL]?\b|ATOM|RED\b|SHFL",  # also the exchange between threads
}
GPUS = {
    80: GPU("A100", 108, 1.41, 1.75, {"issue": 4.0, "mufu": 0.5, "memory": 1.0}),
    90: GPU("H100", 132, 1.7, 3.0, {"issue": 4.0, "mufu": 0.5, "memory": 1.0}),
}
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")


def tool(name: str) -> str:
    """The path of a program of CUDA's toolkit: the one that Triton brings along, or the system's.

    Raises:
        FileNotFoundError: neither has it.
    """
    own = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    found = str(own) if own.exists() else shutil.which(name)
    if not found:
        raise FileNotFoundError(f"{name} is needed, from CUDA's toolkit or the triton wheel")
    return found


class Code(NamedTuple):
    """Machine code: instructions, loops as (first, last), registers, bytes on the stack."""

    opcodes: list[str]
    loops: list[tuple[int, int]]
    registers: int
    stack: int


@functools.cache
def disassemble(cubin: bytes) -> Code:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        run = functools.partial(subprocess.check_output, text=True, stderr=subprocess.DEVNULL)
        text = run([tool("nvdisasm"), "-c", str(file)])
        usage = run([tool("cuobjdump"), "-res-usage", str(file)])
    opcodes, labels, branches = [], {}, []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(opcodes)
        elif (found := INSTRUCTION.search(line)) and found[1] != "NOP":
            if found[1].startswith("BRA") and (to := re.search(r"\.L_\w+", found[2])):
                branches.append((len(opcodes), to[0]))
            opcodes.append(found[1])
    loops = [(labels[to], at) for at, to in branches if labels.get(to, at) < at]
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    return Code(opcodes, loops, registers, stack)


def count(launch: Launch, gpu: GPU) -> dict[str, Any]:
    """What a launch needs: of the code, and of the GPU with all loops run."""
    code = disassemble(launch.cubin)
    times = [1.0] * len(code.opcodes)
    for (first, last), turns in zip(code.loops, turns_of(code, launch)):
        for i in range(first, last + 1):
            times[i] *= turns
    warps = launch.programs * launch.warps
    if launch.name == "finish":  # a program has one of four parameters
        warps /= 4
    per_warp = {"issue": sum(times)}
    for unit, pattern in UNITS.items():
        per_warp[unit] = sum(t for t, o in zip(times, code.opcodes) if re.match(pattern, o))
    rate = gpu.processors * gpu.gigahertz * 1e3  # clocks of all processors a microsecond
    floors = {unit: warps * per_warp[unit] / (rate * gpu.units[unit]) for unit in per_warp}
    return {
        "kernel": launch.name,
        "programs": launch.programs,
        "warps": launch.warps,
        "registers": code.registers,
        "spilled_bytes": code.stack,
        "shared_bytes": launch.shared,
        "barriers": sum(o.startswith("BAR") for o in code.opcodes),
        "instructions": len(code.opcodes),
        "executed": round(per_warp["issue"]),
        "bound": max(floors, key=floors.get),
        "floor_us": max(floors.values()),
    }


def turns_of(code: Code, launch: Launch) -> list[float]:
    """How often each loop turns.

    The compiler may make of a loop one that does several steps a turn, and one for the rest. Which
    it is shows in how many loads it has.
    """
    steps = steps_of(launch)
    loads = [
        max(sum(o.startswith("LDG") for o in code.opcodes[first : last + 1]), 1)
        for first, last in code.loops
    ]
    fewest = min(loads, default=1)
    if all(of_loop < 2 * fewest for of_loop in loads):
        return [float(steps)] * len(loads)
    rest, turns = steps, {}
    for i in sorted(range(len(loads)), key=lambda i: -loads[i]):
        turns[i] = rest // (loads[i] // fewest)
        rest -= turns[i] * (loads[i] // fewest)
    return [float(turns[i]) for i in range(len(loads))]


def steps_of(launch: Launch) -> int:
    """How many steps the loops of a launch have, from the kernel's arguments."""
    of = launch.arguments
    if "samples" in of:
        return -(-of["samples"] // of["ROWS"]) if of["OWN_VAR"] else of["samples"]
    if "tiles" in of:
        return of["tiles"]
    if "number" in of:
        return -(-of.get("batch", 1) * of["number"] // of["BLOCK_I"])
    if "splits" in of:
        return -(-of["batch"] * of["splits"] // of["BLOCK_R"])
    return 1


def inputs_of(
    shape: tuple[int, ...], kind: str, dtype: torch.dtype, last: bool, conditional: bool
) -> tuple[Any, ...]:
    """x, v, var, weight, bias without storage, for a step of training."""
    n, c = shape[:2]
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=layout)
    parameter = functools.partial(torch.empty, dtype=torch.float32, device="meta")
    affine = (n, c) if conditional else (c,)
    return x, parameter(c), None, parameter(affine), parameter(affine)


def launches(
    shape: tuple[int, ...], kind: str, dtype: torch.dtype, last: bool, conditional: bool, arch: int
) -> dict[str, list[Launch]]:
    """Those of the forward and of the backward pass in training."""
    inputs = inputs_of(shape, kind, dtype, last, conditional)
    options: tuple[int, float, str] = (32, 1e-5, kind)
    found: dict[str, list[Launch]] = {}
    with no_gpu(arch) as gpu, cuda_plan.as_if_on(GPUS[arch].processors):
        gpu.launches = found["forward"] = []
        y, *stats = cuda.forward(*inputs, *options)
        gpu.launches = found["backward"] = []
        cuda.backward(y, *inputs, *stats, *options)
    return found


def measure(
    model: str, shape: tuple[int, ...], kind: str, dtype: torch.dtype, last: bool, arch: int
) -> list[dict[str, Any]]:
    """A row for each pass: its launches, its floor, and the time of a copy of the same bytes."""
    gpu, rows = GPUS[arch], []
    found = launches(shape, kind, dtype, last, is_conditional(model), arch)
    for which, of_pass in found.items():
        counts = [count(launch, gpu) for launch in of_pass]
        moved = bytes_of(shape, kind, dtype, which)
        floor, copy = sum(c["floor_us"] for c in counts), moved / (gpu.terabytes * 1e6)
        rows.append(
            {
                "sm": arch,
                "model": model,
                "shape": list(shape),
                "kind": kind,
                "channels_last": last,
                "pass": which,
                "bytes": moved,
                "copy_us": copy,
                "floor_us": floor,
                "floor_over_copy": floor / copy,
                "launches": counts,
            }
        )
    return rows


def bytes_of(shape: tuple[int, ...], kind: str, dtype: torch.dtype, which: str) -> int:
    """The bytes of the tensors that must be moved: of the pass alone, in training."""
    both = least_bytes(kind, shape, dtype.itemsize, "both")
    n, c, h, w = shape
    shared = h * w * (c // 32 if kind[0] == "S" else n)
    again = shared * dtype.itemsize > 256 * 1024
    forward = (2 + again) * n * c * h * w * dtype.itemsize
    return forward if which == "forward" else both - forward


def as_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells: one row for each pass, with the launches' figures joined by +."""
    heads = (
        "sm kind pass layout shape MB copy floor floor/copy registers spilled shared barriers SASS"
    )
    cells = [heads.split()]
    for row in rows:
        joined = [
            "+".join(str(launch[key]) for launch in row["launches"])
            for key in ("registers", "spilled_bytes", "shared_bytes", "barriers", "instructions")
        ]
        cells.append(
            [
                str(row["sm"]),
                row["kind"],
                row["pass"],
                "NHWC" if row["channels_last"] else "NCHW",
                "x".join(map(str, row["shape"])),
                f"{row['bytes'] / 1e6:.1f}",
                f"{row['copy_us']:.1f}",
                f"{row['floor_us']:.1f}",
                f"{row['floor_over_copy']:.2f}",
                *joined,
            ]
        )
    return cells
