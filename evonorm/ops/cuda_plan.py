"""How a tensor on a GPU is divided among programs, and which kernels run.

On small maps a call takes longer in Python than on the GPU. So all that follows from the shapes and
dtypes of a call is worked out once and kept, and Triton's own look-up is skipped from then on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Optional

import torch
import triton
from torch import Tensor

from . import reference, triton_sums
from . import triton_channel as channel
from . import triton_split as split
from . import triton_whole as whole

ON_CHIP = 16384  # values of the largest tile that holds a group: 32 for each of 512 threads
ADDS_UP = 1024  # partial sums that a program adds up itself
TILE = 4096  # values of a tile of a divided group; at least 128
WARPS = 32  # of a multiprocessor: some compute while others wait for the memory
CHANNEL = 2**18  # values of the largest channel that one program takes, over all samples
AT_ONCE = 8192  # values of the largest channel that is one tile, over all samples
FEW = 512  # values of a channel for which a program of its own is too much
MOST_TIMES = 65535  # programs in the grid's second dimension
KEPT = 10000  # calls
CONSTANTS_ARE_PASSED = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)


class Launch:
    """A kernel with its grid and its constants."""

    def __init__(
        self, kernel: Any, programs: int, times: int, warps: int, **constants: Any
    ) -> None:
        self.kernel, self.warps, self.constants = kernel, warps, constants
        self.grid = (programs, times, 1)
        self.run: Any = None
        names = kernel.arg_names[-len(constants) :] if CONSTANTS_ARE_PASSED else ()
        self.passed = tuple(constants[name] for name in names)

    def __call__(self, aligned: bool, *arguments: Any) -> None:
        """Launch with what varies. Where the tensors are not `aligned`, Triton looks closer."""
        if self.run is not None and aligned:
            self.run(*arguments, *self.passed)
            return
        compiled = self.kernel[self.grid](*arguments, **self.constants, num_warps=self.warps)
        if aligned and compiled is not None:  # it is None in Triton's interpreter
            self.run = compiled[self.grid]


class Call:
    """All that follows from the shapes, strides and dtypes of a call.

    `tensors` like x are in a tile at once: 1 in the forward pass, 2 in the backward pass.
    """

    def __init__(
        self, x: Tensor, parameters: tuple[Optional[Tensor], ...], groups: int, kind: str,
        tensors: int,
    ) -> None:  # fmt: skip
        _check(x, parameters, groups, kind)
        self.by_reference = x.dtype == torch.float64 or x.numel() == 0
        if self.by_reference:
            return
        self.kind, self.tensors, self.itemsize = kind, tensors, x.element_size()
        self.processors = _processors(x.device)
        self.n, self.c, h, w = x.shape
        self.plane = h * w
        series_b = kind[0] == "B"
        self.groups = self.c if series_b else groups
        self.width = self.c // self.groups
        self.own_var = series_b and parameters[1] is None
        self.layout = reference._memory_format(x)
        self.last = self.layout == torch.channels_last or self.plane == 1
        self.each = [p is not None and p.dim() == 2 for p in parameters[2:]]
        # From one sample's row of weight and bias to the next.
        self.steps = [
            (p.stride(0) if p.stride(1) == 1 else self.c) if each else 0
            for p, each in zip(parameters[2:], self.each)
        ]
        self.is_dense = x.is_contiguous(memory_format=self.layout) and not any(
            p is not None and p.stride(-1) != 1 for p in parameters
        )
        self.finishes = any(p is not None for p in parameters)
        self.at_once = self._plan_at_once()
        self.whole = not self.at_once and self._plan_whole()
        if not (self.at_once or self.whole):
            self._plan_split()

    def dense(
        self, x: Tensor, parameters: tuple[Optional[Tensor], ...]
    ) -> tuple[Tensor, tuple[Optional[Tensor], ...]]:
        """x in a dense layout, and parameters with consecutive channels: copied where need be."""
        if self.is_dense:
            return x, parameters
        rows = (p if p is None or p.stride(-1) == 1 else p.contiguous() for p in parameters)
        return x.contiguous(memory_format=self.layout), tuple(rows)

    def added_up(self, parts: Tensor) -> Tensor:
        """Of each group one part, if a program would have many to add up."""
        if self.number == self.parts:
            return parts
        wholes = parts.new_empty(parts.shape[:-1])
        self.add_up(True, parts, wholes, self.n * self.groups, self.parts)
        return wholes

    def _plan_at_once(self) -> bool:
        """Give each program a channel, if all its samples are few values."""
        rows, row = _power(self.n), _power(self.plane)
        # Where parameters are those of each sample, the other way is to divide the tensor.
        enough = 2 * self.c >= self.processors and (
            not any(self.each) or self.n * self.plane >= FEW
        )
        if not self.own_var or self.last or not enough or rows * row > AT_ONCE:
            return False
        self.rows, self.finished = self.n, (self.n, 1, self.c)
        constants = self._constants(1)
        constants = {name: constants[name] for name in ("KIND", "CENTRED", "ALIGN")}
        constants |= {"ROWS": rows} | self._columns(row)
        warps = min(max(rows * row * self.tensors // 1024, 1), 16)
        kernel = channel.forward if self.tensors == 1 else channel.backward
        self.write = Launch(kernel, self.c, 1, warps, **constants)
        self.finish = self._finish()
        return True

    def _columns(self, row: int) -> dict[str, int]:
        """A row in runs, each with one thread or few."""
        run = 1 if self.last else min(row, 8 * math.gcd(self.plane, 16 // self.itemsize))
        return {"COLUMNS": row // run, "RUN": run}

    def _plan_whole(self) -> bool:
        """Divide x so that a program has whole groups, if they fit on a multiprocessor."""
        n, part, row = self.n, _power(self.width), _power(self.plane)
        column, limit = _power(self.groups) * part, ON_CHIP // self.tensors
        rows = part
        if self.own_var:  # a row is a sample of one channel
            rows = max(min(_power(n), limit // 2 // row), 1)
            enough = 2 * self.c >= self.processors and n * self.plane <= CHANNEL
            fits = enough and not (self.last or any(self.each)) and rows * row <= limit
        else:
            if self.last:  # a GPU reads 32 bytes at a time
                rows = max(part, min(32 // self.itemsize, column))
            if self.last or part == 1:
                while rows * row < 512 and rows < column:
                    rows *= 2
            fits = rows * row <= limit
        if not fits:
            return False
        values = rows * row
        of_warp = 512 // self.tensors
        if self.own_var and self.tensors == 1:
            of_warp = 1024
        elif self.last and any(self.each):  # sums of one sample, which take many exchanges
            of_warp = 512
        warps = min(max(values // of_warp, 1), 16)
        blocks = self.c if self.own_var else -(-self.groups // (rows // part))
        wanted = self.processors * max(WARPS // warps, 1)
        samples = n if self.own_var else 1 if any(self.each) else max(n * blocks // wanted, 1)
        self.samples, self.rows = samples, -(-n // samples)
        if self.rows > MOST_TIMES:
            return False
        self.finished = (self.rows, 1, self.c)
        constants = self._constants(part) | {"ROWS": rows} | self._columns(row)
        constants["OWN_VAR"] = self.own_var
        kernel = whole.forward if self.tensors == 1 else whole.backward
        self.write = Launch(kernel, blocks, self.rows, warps, **constants)
        self.finish = self._finish()
        return True

    def _plan_split(self) -> None:
        """Divide x so that programs have parts of groups. `reduce` runs first, `write` last."""
        n, group, row = self.n, _power(self.width), _power(self.plane)
        column, tile = _power(self.groups) * group, TILE // self.tensors
        # Channels last take more registers, so fewer programs are on a multiprocessor.
        of_each = WARPS - 8 * self.last
        while True:  # with fewer warps, which work longer, if there are many programs
            block_c = min(64, column) if self.last else min(tile // min(tile // 4, row), column)
            block_p = min(tile // block_c, row)
            part = min(group, block_c)
            warps = min(max(block_c * block_p * self.tensors // 512, 1), 16)
            parts = -(-self.width // part)
            blocks = -(-self.groups // (block_c // part)) * parts
            wanted = self.processors * max(of_each // warps, 1)
            if warps == 1 or 2 * n * blocks < 3 * wanted:
                break
            tile //= 2
        all_tiles = -(-self.plane // block_p)
        tiles = -(-all_tiles // max(wanted // (n * blocks), 1))
        splits = -(-all_tiles // tiles)
        self.parts, self.rows = splits * parts, n * splits
        self.division = (blocks, splits, tiles)
        self.finished = (n, splits, self.c)
        own_var = {"OWN_VAR": self.own_var}
        constants = self._constants(part) | {"BLOCK_C": block_c, "BLOCK_P": block_p}
        self.number, of_group = self.parts, _power(self.parts)
        if block_c // part * of_group > ADDS_UP:
            self.number, block = 1, max(1024 // of_group, 1)
            sizes = {"MOMENTS": self.tensors == 1, "BLOCK": block, "BLOCK_I": of_group}
            self.add_up = Launch(triton_sums.add_up, -(-n * self.groups // block), 1, 4, **sizes)
        adds_up = constants | {"BLOCK_I": _power(self.number)} | own_var
        programs = (n * blocks, splits, warps)
        if self.tensors == 1:
            kept = ("LAST", "ALIGN", "WIDTH", "PART", "BLOCK_C", "BLOCK_P")
            moments = {name: constants[name] for name in kept}
            self.reduce = Launch(split.moments, *programs, **moments)
            self.write = Launch(split.forward, *programs, **adds_up)
            of_channel = min(_power(n * self.number), 128)
            sizes = {"LAST": self.last, "BLOCK": 512 // of_channel, "BLOCK_I": of_channel}
            self.combine = Launch(triton_sums.combine, -(-self.c // sizes["BLOCK"]), 1, 4, **sizes)
        else:
            sums = {k: value for k, value in constants.items() if k != "CENTRED"} | own_var
            self.reduce = Launch(split.sums, *programs, **sums)
            self.write = Launch(split.backward, *programs, **adds_up)
            self.finish = self._finish()

    def _finish(self) -> Launch:
        each = {"EACH_WEIGHT": self.each[0], "EACH_BIAS": self.each[1]}
        rows = min(_power(self.finished[0] * self.finished[1]), 64)
        # Half a tile for parameters of each sample, whose offsets take more registers.
        tile = {"BLOCK_R": rows, "BLOCK": (512 if any(self.each) else 1024) // rows}
        return Launch(triton_sums.finish, 4 * -(-self.c // tile["BLOCK"]), 1, 4, **each, **tile)

    def _constants(self, part: int) -> dict[str, Any]:
        return {
            "KIND": self.kind,
            "GATED": self.kind[0] == "S",
            "CENTRED": self.kind in reference.CENTRED,
            "LAST": self.last,
            "ALIGN": math.gcd(self.c if self.last else self.plane, 16),
            "WIDTH": self.width,
            "PART": part,
        }


_calls: dict[tuple[Any, ...], Call] = {}


def call_for(
    x: Tensor, parameters: tuple[Optional[Tensor], ...], groups: int, kind: str, tensors: int
) -> Call:
    of_parameters = [
        None if p is None else (p.shape, p.stride(), p.dtype, p.device) for p in parameters
    ]
    key = (kind, groups, tensors, x.shape, x.stride(), x.dtype, x.device, *of_parameters)
    call = _calls.get(key)
    if call is None:
        if len(_calls) >= KEPT:
            _calls.clear()
        call = _calls[key] = Call(x, parameters, groups, kind, tensors)
    return call


def are_aligned(*tensors: Optional[Tensor]) -> bool:
    """Whether all begin at a multiple of 16 bytes, as Triton compiles another kernel if not."""
    addresses = 0
    for t in tensors:
        if t is not None:
            addresses |= t.data_ptr()
    return addresses % 16 == 0


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


@lru_cache
def _processors(device: torch.device) -> int:
    """The multiprocessors of the device."""
    if device.type != "cuda":
        return 1  # Triton's interpreter
    return torch.cuda.get_device_properties(device).multi_processor_count


@contextmanager
def as_if_on(processors: int) -> Iterator[None]:
    """A context in which tensors are divided as for a GPU with this many multiprocessors."""
    global _processors
    before, _processors = _processors, lambda device: processors
    _calls.clear()
    try:
        yield
    finally:
        _processors = before
        _calls.clear()


def _check(x: Tensor, parameters: tuple[Optional[Tensor], ...], groups: int, kind: str) -> None:
    if x.dim() != 4:
        raise ValueError(f"x should be (N, C, H, W), not of shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x should be floating-point, not {x.dtype}")
    if kind not in reference.KINDS:
        raise ValueError(f"kind should be one of {', '.join(reference.KINDS)}, not {kind}")
    n, c = x.shape[:2]
    if kind[0] == "S" and (groups < 1 or c % groups):
        raise ValueError(f"{groups} groups don't divide {c} channels")
    for name, p in zip(("v", "var", "weight", "bias"), parameters):
        if p is None:
            continue
        right = [(c,), (n, c)] if name in ("weight", "bias") else [(c,)]
        if tuple(p.shape) not in right:
            shapes = " or ".join(map(str, right))
            raise ValueError(f"{name} should have the shape {shapes}, not {tuple(p.shape)}")
        if p.device != x.device:
            raise ValueError(f"{name} should be on {x.device}, as x is, not on {p.device}")
