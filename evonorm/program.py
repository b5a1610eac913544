"""A formula as a list of steps, which operators evaluate block by block (ops/cpu_formula.cpp).

They compute what :mod:`evonorm.codegen`'s function does, and its gradient, each in one
pass, without a tensor for each operation.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Optional

import torch
from torch import Tensor

from .base import KeepInputsOnly, differentiated
from .expression import AGGREGATIONS, OWN, Node

# In the order of cpu_formula.h. `root` is sqrt(a + eps), `guarded` a denominator that may be zero.
OPS = (
    *("x", "v0", "v1", "statistic", "number", "expand"),
    *("add", "sub", "mul", "div", "neg", "max", "relu", "at_least", "sigmoid", "tanh", "exp"),
    *("log", "signed_log", "abs", "square", "sqrt", "signed_sqrt", "root", "guarded"),
    *("mean", "std", "rms"),
)
OVER = {"i": 0, "g": 1, "c": 2}
LONGEST = 64  # steps: the results of more do not fit into the cache


class Program(NamedTuple):
    """Steps of four integers (operation, two inputs, whether it is full), and a number each."""

    steps: list[int]
    numbers: list[float]


def compile_program(root: Node, batch: list[Node]) -> Program | None:
    """The program of an expression; None for one too long, or with a user's function.

    Args:
        batch: the aggregations over the batch, which are given as statistics.
    """
    if any(node.op in OWN for node in root.walk()):
        return None
    writer = _Writer(batch)
    writer.full(root)
    if len(writer.numbers) > LONGEST:
        return None
    return Program(writer.steps, writer.numbers)


class _Writer:
    def __init__(self, batch: list[Node]) -> None:
        self.batch = batch
        self.steps: list[int] = []
        self.numbers: list[float] = []
        self.places: dict[tuple, int] = {}

    def step(self, op: str, a: int = 0, b: int = 0, full: bool = False, number: float = 0.0) -> int:
        """The place of a step, written where no equal one is there."""
        key = (op, a, b, full, number)
        if key not in self.places:
            self.places[key] = len(self.numbers)
            self.steps += [OPS.index(op), a, b, int(full)]
            self.numbers.append(number)
        return self.places[key]

    def is_full(self, place: int) -> bool:
        return bool(self.steps[4 * place + 3])

    def full(self, node: Node) -> int:
        """The place of a node's value, expanded to the shape of x."""
        place = self.write(node)
        return place if self.is_full(place) else self.step("expand", place, full=True)

    def write(self, node: Node) -> int:
        if node.op == "number":
            return self.step("number", number=node.value)
        if node in self.batch:
            statistic = self.step("statistic", self.batch.index(node))
            return statistic if node.op == "mean_b" else self.step("root", statistic)
        if not node.inputs:
            return self.step(node.op, full=node.op == "x")
        if node.op in AGGREGATIONS:
            kind, over = node.op.split("_")
            return self.step(kind, self.write(node.inputs[0]), OVER[over])
        one = node.inputs[0]
        if len(node.inputs) == 1:
            plain = node.op not in ("log", "sqrt") or one.sign == "+"
            return self.unary(node.op if plain else f"signed_{node.op}", one)
        two = node.inputs[1]
        if node.op == "max" and two.op == "number":
            return self.unary("at_least" if two.value else "relu", one, two.value)
        if node.op == "add" and two.op == "neg":
            return self.binary("sub", one, two.inputs[0])
        return self.binary(node.op, one, two)

    def unary(self, op: str, node: Node, number: float = 0.0) -> int:
        a = self.write(node)
        return self.step(op, a, full=self.is_full(a), number=number)

    def binary(self, op: str, one: Node, two: Node) -> int:
        a, b = self.write(one), self.write(two)
        if op == "div" and not two.nonzero:
            b = self.step("guarded", b, full=self.is_full(b))
        full = self.is_full(a) or self.is_full(b)
        if full:
            a, b = (p if self.is_full(p) else self.step("expand", p, full=True) for p in (a, b))
        return self.step(op, a, b, full)


class Evaluation:
    """A program with its options, in the place of the function that it stands for.

    Args:
        function: of the same tensors, for second derivatives.
    """

    def __init__(
        self, function: Callable[..., Tensor], program: Program, groups: int, eps: float
    ) -> None:
        self.function, self.options = function, (*program, groups, eps)

    def __call__(self, *inputs: Optional[Tensor]) -> Tensor:
        return self.function(*inputs)

    def run(self, *inputs: Optional[Tensor]) -> Tensor:
        """The value, which keeps the inputs for the backward pass."""
        return _Evaluate.apply(self, *inputs) if differentiated(*inputs) else self.forward(*inputs)

    def forward(self, x: Tensor, *inputs: Optional[Tensor]) -> Tensor:
        """Of x (N, C, H, W), then v, v0, weight, bias, (C,) or None, and statistics (C,)."""
        return torch.ops.evonorm.formula_forward(x, *_arranged(*inputs), *self.options)

    def backward(self, dy: Tensor, x: Tensor, *inputs: Optional[Tensor]) -> list[Optional[Tensor]]:
        """The gradients by x and the other inputs, None for those that are None."""
        dx, sums = torch.ops.evonorm.formula_backward(dy, x, *_arranged(*inputs), *self.options)
        v0, v, weight, bias, *statistics = sums.unbind(0)
        found = (v, v0, weight, bias, *statistics)
        return [dx, *(None if t is None else g for t, g in zip(inputs, found))]


class _Evaluate(KeepInputsOnly):
    @staticmethod
    def forward(ctx: Any, evaluation: Evaluation, *inputs: Optional[Tensor]) -> Tensor:
        ctx.function = evaluation
        ctx.save_for_backward(*inputs)
        return evaluation.forward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Optional[Tensor], ...]:
        if torch.is_grad_enabled():  # for a second derivative
            return KeepInputsOnly.backward(ctx, dy)
        grads = ctx.function.backward(dy, *ctx.saved_tensors)
        return (None, *(g if need else None for g, need in zip(grads, ctx.needs_input_grad[1:])))


def _arranged(v: Any, v0: Any, weight: Any, bias: Any, *statistics: Tensor) -> tuple:
    """As the operators take them."""
    return v0, v, weight, bias, torch.stack(statistics) if statistics else None
