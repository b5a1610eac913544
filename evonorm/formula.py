"""The language of norm-acts: `x * sigmoid(v1 * x) / std_g(x)` is EvoNorm-S0.

A formula is an expression in Python's syntax. It is parsed, never evaluated. It may hold

    x             the input (N, C, H, W)
    v0, v1        learnt vectors, one value per channel, which start at 0 and at 1
    numbers       such as 2, 0.5, 1e-3
    + - * /       and brackets
    functions     max(a, b), sigmoid, tanh, exp, log, abs, square, sqrt
    aggregations  mean_K, std_K, rms_K, where K says over what: b the batch (N, H, W), c a sample
                  (C, H, W), i a channel of a sample (H, W), g a group of channels (C/groups, H, W)

as in table 1 of the paper. gamma and beta follow and are not written down. Division, log and sqrt
are table 1's: a / (b + eps sign(b)), sign(a) ln(|a| + eps) and sign(a) sqrt(|a|), unless it is
proved that the argument is not zero, as for a standard deviation; then they are the plain ones.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
from functools import cached_property, lru_cache
from typing import Callable

from torch import Tensor

from .codegen import compile_function
from .expression import (
    AGGREGATIONS,
    FUNCTIONS,
    LEAVES,
    OWN,
    FormulaError,
    Node,
    apply,
    leaf,
    number,
)
from .latex import latex
from .program import Program, compile_program

_OPERATORS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
SHOWN = 200  # characters of a formula in an error's line
# What no name of a layer has: an input as a word of its own, a bracket, a number alone.
_LIKE_A_FORMULA = re.compile(r"(?<![\w.])(x|v0|v1)(?!\w)|\(|^[\s\d.+-]+$")


class Formula:
    """A norm-act as an expression, without gamma and beta. Equal formulas are equal objects.

    Args:
        text: in the language above.

    Attributes:
        root: the expression in its canonical form.
        batch: the aggregations over the batch, inputs before what takes them. The one that
            EvoNorm-B's layers have, std_b(x), or else rms_b(x), comes first.
        operations: how many operations there are, a repeated part counted once.

    Raises:
        FormulaError: the text is not a formula.
    """

    def __init__(self, text: str | Node) -> None:
        self.root = text if isinstance(text, Node) else parse(text)
        nodes = list(self.root.walk())
        self.operations = sum(node.op not in (*LEAVES, "number") for node in nodes)
        batch = [node for node in nodes if node.op.endswith("_b")]
        usual = [node for text in ("std_b(x)", "rms_b(x)") for node in batch if node.text == text]
        self.batch = usual[:1] + [node for node in batch if node not in usual[:1]]
        self.vectors = [name for name in ("v0", "v1") if leaf(name) in nodes]

    @cached_property
    def function(self) -> Callable[..., Tensor]:
        """function(x, v0, v1, statistics, groups, eps) -> y, generated code of its own.

        x is (N, C, H, W), float32 or float64; v0 and v1 are (C, 1, 1). `statistics` has a tensor
        (C, 1, 1) for each aggregation in `batch`: the batch's mean for a mean, its biased variance
        for a std, its mean square for an rms; or the running estimates of these.
        """
        return compile_function(self.root, self.batch)

    @cached_property
    def program(self) -> Program | None:
        """The same as steps for operators of :mod:`evonorm.ops`; None if there is none."""
        return compile_program(self.root, self.batch)

    @cached_property
    def inner_functions(self) -> list[Callable[..., Tensor] | None]:
        """Likewise what each aggregation in `batch` is taken of; None for x itself."""
        inner = [node.inputs[0] for node in self.batch]
        return [None if a.op == "x" else compile_function(a, self.batch) for a in inner]

    @property
    def latex(self) -> str:
        """In the paper's notation, for a mathematical environment of LaTeX."""
        return latex(self.root)

    @property
    def batch_statistics(self) -> list[str]:
        """The aggregations over the batch, as texts."""
        return [node.text for node in self.batch]

    def __str__(self) -> str:
        return self.root.text

    def __repr__(self) -> str:
        return f"Formula({self.root.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Formula) and self.root is other.root

    def __hash__(self) -> int:
        return hash(self.root)

    def __reduce__(self) -> tuple:
        return Formula, (self.root.text,)

    def __deepcopy__(self, memo: dict) -> Formula:
        return self


def looks_like_formula(name: str) -> bool:
    """Whether a string is meant as a formula, and not as a name; it may still be broken."""
    return bool(_LIKE_A_FORMULA.search(name))


@lru_cache(maxsize=4096)
def read_formula(text: str) -> Formula:
    """Formula(text), the same object for the same text."""
    return Formula(text)


def parse(text: str) -> Node:
    """The expression that a text stands for, in canonical form.

    Raises:
        FormulaError: the text is not a formula.
    """
    line = " ".join(text.split())
    try:
        return _Reader(line).read()
    except FormulaError as error:
        what = str(error)
    except (RecursionError, MemoryError):
        what = "the formula is nested too deeply"
    except ValueError as error:  # a null character
        what = str(error)
    shown = line if len(line) <= SHOWN else f"{line[:SHOWN]} ..."
    raise FormulaError(f'"{shown}": {what}')


def _arity() -> dict[str, int]:
    """The number of inputs of each function that a formula may hold."""
    return {**FUNCTIONS, **AGGREGATIONS, **{name: own.inputs for name, own in OWN.items()}}


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text

    def read(self) -> Node:
        if not self.text:
            raise FormulaError("the formula is empty")
        try:
            tree = ast.parse(self.text, mode="eval")
        except SyntaxError as error:
            if "null byte" in error.msg or "nested" in error.msg:
                raise FormulaError(error.msg) from None
            if not error.offset or error.offset > len(self.text):
                raise FormulaError("the formula ends too early") from None
            raise FormulaError(f"{error.msg} at character {error.offset}") from None
        return self.node(tree.body)

    def node(self, tree: ast.expr) -> Node:
        if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATORS:
            one, two = self.node(tree.left), self.node(tree.right)
            op = _OPERATORS[type(tree.op)]
            return apply("add", one, apply("neg", two)) if op == "sub" else apply(op, one, two)
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, (ast.USub, ast.UAdd)):
            operand = self.node(tree.operand)
            return apply("neg", operand) if isinstance(tree.op, ast.USub) else operand
        if isinstance(tree, ast.Constant):
            return self.number(tree)
        if isinstance(tree, ast.Name):
            return self.leaf(tree)
        if isinstance(tree, ast.Call):
            return self.call(tree)
        raise self.error(tree, f"{self.source(tree)} can't be used in a formula", _ADVICE)

    def number(self, tree: ast.Constant) -> Node:
        if type(tree.value) not in (int, float):
            raise self.error(tree, f"{self.source(tree)} is not a number")
        try:
            value = float(tree.value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self.error(tree, "the number is too large")
        return number(value)

    def leaf(self, tree: ast.Name) -> Node:
        if tree.id in LEAVES:
            return leaf(tree.id)
        if tree.id in _arity():
            raise self.error(tree, f"the function {tree.id!r} has no brackets")
        raise self.error(tree, f"unknown name {tree.id!r}", self.close(tree.id, LEAVES))

    def call(self, tree: ast.Call) -> Node:
        if not isinstance(tree.func, ast.Name):
            raise self.error(tree.func, f"{self.source(tree.func)} is not a function")
        name = tree.func.id
        if name not in _arity():
            advice = self.close(name, _arity())
            raise self.error(tree.func, f"unknown function {name!r}", advice)
        plain = not tree.keywords and not any(isinstance(a, ast.Starred) for a in tree.args)
        wanted = _arity()[name]
        if not plain or len(tree.args) != wanted:
            count = f"{wanted} argument{'s' if wanted > 1 else ''}"
            raise self.error(tree.func, f"the function {name!r} takes {count}")
        return apply(name, *map(self.node, tree.args))

    def close(self, name: str, known: object) -> str:
        found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
        return f"did you mean {found[0]!r}?" if found else f"known are {', '.join(known)}"

    def source(self, tree: ast.expr) -> str:
        text = ast.get_source_segment(self.text, tree) or "this"
        return repr(text if len(text) < 40 else f"{text[:40]} ...")

    def error(self, tree: ast.expr, what: str, advice: str = "") -> FormulaError:
        # Python counts bytes of UTF-8.
        before = self.text.encode()[: tree.col_offset].decode()
        advice = f": {advice}" if advice else ""
        return FormulaError(f"{what} at character {len(before) + 1}{advice}")


_ADVICE = "a formula has numbers, x, v0, v1, + - * /, brackets and the functions of table 1"
