"""A formula as Python code of its own, which TorchScript, ONNX and torch.compile read as any other.

A compiler keeps what it compiled by code object, so formulas must not share one interpreter.
"""

from __future__ import annotations

import itertools
import linecache
import weakref
from collections import Counter
from typing import Any, Callable

import torch
from torch import Tensor

from . import aggregations
from .expression import AGGREGATIONS, OWN, Node

_SIGNATURE = """\
def formula(
    x: Tensor, v0: Tensor, v1: Tensor, statistics: list[Tensor], groups: int, eps: float
) -> Tensor:
"""
_NUMBER = itertools.count()
_PLAIN = {"add": "{} + {}", "mul": "{} * {}", "neg": "-{}", "max": "torch.maximum({}, {})"}
_CALLS = ("sigmoid", "tanh", "exp", "abs", "square")


def compile_function(root: Node, batch: list[Node]) -> Callable[..., Tensor]:
    """The function whose result has the shape of x; see :class:`evonorm.formula.Formula`."""
    lines = _Writer(root, batch).lines()
    source = _SIGNATURE + "".join(f"    {line}\n" for line in lines)
    file = f"<formula {next(_NUMBER)}: {root.text[:80]}>"
    # Where TorchScript, and a traceback, look for the source.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Any] = {**vars(aggregations), "torch": torch, "Tensor": Tensor}
    names |= {f"own_{name}": own.function for name, own in OWN.items()}
    exec(compile(source, file, "exec"), names)  # names and numbers of a checked expression only
    function = names["formula"]
    weakref.finalize(function, linecache.cache.pop, file, None)  # a search makes a million of them
    return function


class _Writer:
    """Writes an expression as code: a part that is used twice gets a name."""

    def __init__(self, root: Node, batch: list[Node]) -> None:
        self.root, self.batch = root, batch
        self.uses = Counter(child for node in self._needed(root) for child in node.inputs)
        self.names: dict[Node, str] = {}
        self.written: list[str] = []

    def lines(self) -> list[str]:
        result = self.code(self.root)
        if self.root.op == "number":
            result = f"torch.full_like(x, {result})"
        elif not _full(self.root):
            result = f"torch.zeros_like(x) + ({result})"  # with x's layout as well
        return [*self.written, f"return {result}"]

    def _needed(self, root: Node) -> list[Node]:
        """The nodes to be computed: not what a statistic of the batch is taken of."""
        found: dict[Node, None] = {}

        def visit(node: Node) -> None:
            if node not in found:
                found[node] = None
                for child in () if node in self.batch else node.inputs:
                    visit(child)

        visit(root)
        return [node for node in found if node not in self.batch]

    def code(self, node: Node) -> str:
        if node in self.names:
            return self.names[node]
        text = self.expression(node)
        if self.uses[node] > 1 and node.inputs:
            self.names[node] = f"z{len(self.names)}"
            self.written.append(f"{self.names[node]} = {text}")
            return self.names[node]
        return text

    def expression(self, node: Node) -> str:
        if node.op == "number":
            return repr(node.value)
        if not node.inputs:
            return node.op
        if node in self.batch:
            statistic = f"statistics[{self.batch.index(node)}]"
            return statistic if node.op == "mean_b" else f"torch.sqrt({statistic} + eps)"
        if node.op in AGGREGATIONS:
            return self.aggregation(node)
        if node.op == "max" and node.inputs[1].op == "number":
            one, bound = self.code(node.inputs[0]), node.inputs[1].value
            return f"torch.clamp({one}, min={bound!r})" if bound else f"torch.relu({one})"
        inputs = [self.operand(child, node) for child in node.inputs]
        if node.op == "add" and node.inputs[1].op == "neg":
            return f"{inputs[0]} - {self.operand(node.inputs[1].inputs[0], node)}"
        if node.op == "div":
            below = node.inputs[1]
            if below.nonzero:
                return f"{inputs[0]} / {inputs[1]}"
            tensor = f"constant(x, {inputs[1]})" if below.op == "number" else inputs[1]
            return f"{inputs[0]} / guarded({tensor}, eps)"
        if node.op == "log":
            plain = node.inputs[0].sign == "+"
            return f"torch.log({inputs[0]})" if plain else f"signed_log({inputs[0]}, eps)"
        if node.op == "sqrt":
            plain = node.inputs[0].sign == "+"
            return f"torch.sqrt({inputs[0]})" if plain else f"signed_sqrt({inputs[0]})"
        if node.op in OWN:
            return f"own_{node.op}({', '.join(inputs)})"
        if node.op in _CALLS:
            return f"torch.{node.op}({inputs[0]})"
        return _PLAIN[node.op].format(*inputs)

    def operand(self, child: Node, parent: Node) -> str:
        text = self.code(child)
        arithmetic = parent.op in ("add", "mul", "div", "neg")
        if child.op == "number":
            return text if arithmetic else f"constant(x, {text})"
        named = child in self.names or not child.inputs
        bare = named or not arithmetic or child.op not in ("add", "mul", "div", "neg")
        return text if bare else f"({text})"

    def aggregation(self, node: Node) -> str:
        kind, over = node.op.split("_")
        a = node.inputs[0]
        if a.op == "number":  # the rms of a number: it is taken of one value
            return f"rms_i(constant(x, {a.value!r}), eps)"
        text = self.code(a) if _full(a) else f"({self.code(a)}).expand_as(x)"
        groups = ", groups" if over == "g" else ""
        return f"{node.op}({text}{groups}{'' if kind == 'mean' else ', eps'})"


def _full(node: Node) -> bool:
    """Whether its tensor has the shape of x without being expanded."""
    return {"n", "p"} <= set(node.varies) and bool({"c", "g"} & set(node.varies))
