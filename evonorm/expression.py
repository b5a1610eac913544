"""Expressions of the formula language, and the one canonical form that equal ones share.

An expression is a graph of :class:`Node`. Nodes are made by the functions of this module only
(:func:`number`, :func:`leaf`, :func:`apply`), which apply identities that always hold, so every
node is canonical from the start: -(-a) = a, a * 1 = a, a + a = 2 * a, max(a, a) = a,
abs(square(a)) = square(a) and the like. The inputs of sums, products and maxima are sorted. Equal
nodes are one object, so a part that occurs twice is computed once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Callable, NamedTuple
from weakref import WeakValueDictionary

LONGEST = 20_000  # characters of a formula; a small graph can stand for endlessly long a text

FUNCTIONS = {  # of table 1, with the number of inputs; + - * / are written as such
    "max": 2,
    **dict.fromkeys(("sigmoid", "tanh", "exp", "log", "abs", "square", "sqrt"), 1),
}
# The dimensions, as in `Node.varies`, along which the result of an aggregation is the same.
OVER = {"b": "np", "c": "cgp", "i": "p", "g": "cp"}
AGGREGATIONS = {f"{kind}_{over}": 1 for kind in ("mean", "std", "rms") for over in OVER}
LEAVES = ("x", "v0", "v1")


class Own(NamedTuple):
    """A function of a user's own; see :func:`evonorm.register_function`."""

    function: Callable[..., Any]
    inputs: int


OWN: dict[str, Own] = {}


class FormulaError(ValueError):
    """A formula that can't be read. The text is one line and points at the place."""


class Node:
    """A number, an input (x, v0, v1) or an operation on nodes.

    Attributes:
        op: "number", one of `LEAVES`, `FUNCTIONS` or `AGGREGATIONS`, "add", "mul", "div" or "neg".
        inputs: of the operation.
        value: of a number, else 0.
        text: in the language; parsing it gives this node again.
        varies: the dimensions along which its values differ: some of n (samples), c (channels),
            g (groups of channels) and p (pixels).
        sign: "+" above 0, "0+" at least 0, "0" zero, "0-" at most 0, "-" below 0, "" unknown.
    """

    __slots__ = ("op", "inputs", "value", "text", "varies", "sign", "__weakref__")

    def __init__(self, op: str, inputs: tuple[Node, ...], value: float) -> None:
        self.op, self.inputs, self.value = op, inputs, value
        self.varies = _varies(self)
        self.sign = _sign(self)
        self.text = _text(self)
        if len(self.text) > LONGEST:
            raise FormulaError(f"the formula is longer than {LONGEST:,} characters")

    @property
    def nonzero(self) -> bool:
        """Whether it is proved that no value is zero."""
        return self.sign in ("+", "-")

    def walk(self) -> Iterator[Node]:
        """This node and all below it, each once, inputs before what takes them."""
        seen: set[Node] = set()

        def visit(node: Node) -> Iterator[Node]:
            if node not in seen:
                seen.add(node)
                for child in node.inputs:
                    yield from visit(child)
                yield node

        return visit(self)

    def __repr__(self) -> str:
        return f"Node({self.text})"

    def __reduce__(self) -> tuple:  # equal nodes stay one object after copying and unpickling
        return (number, (self.value,)) if self.op == "number" else (_node, (self.op, self.inputs))


_NODES: WeakValueDictionary[tuple, Node] = WeakValueDictionary()


def _node(op: str, inputs: tuple[Node, ...] = (), value: float = 0.0) -> Node:
    key = (op, inputs, value)
    node = _NODES.get(key)
    if node is None:
        node = _NODES[key] = Node(op, inputs, value)
    return node


def number(value: float) -> Node:
    """A constant, which must be finite."""
    return _node("number", value=float(value) + 0.0)  # + 0.0 makes -0.0 a 0.0


def leaf(name: str) -> Node:
    """x, v0 or v1."""
    return _node(name)


def apply(op: str, *inputs: Node) -> Node:
    """An operation on nodes, in canonical form."""
    if op in OWN:
        return _node(op, inputs)
    if op == "add":
        return _sum(_all_terms(inputs))
    if op == "neg":
        return _sum([(-c, node) for c, node in _terms(inputs[0])])
    if op == "mul":
        return _product(*_merge(_factors(inputs[0]), _factors(inputs[1])))
    if op == "div":
        return _quotient(*inputs)
    if op == "max":
        return _maximum(*inputs)
    if op in AGGREGATIONS:
        return _aggregate(op, inputs[0])
    return _function(op, inputs[0])


# Sums: (coefficient, node) pairs, in which a number has the node 1.

Terms = list[tuple[float, Node]]


def _all_terms(nodes: Iterable[Node]) -> Terms:
    return [term for node in nodes for term in _terms(node)]


def _terms(node: Node) -> Terms:
    """The terms that add up to the node."""
    if node.op == "number":
        return [(node.value, number(1))]
    if node.op == "add":
        return _all_terms(node.inputs)
    if node.op == "neg":
        return [(-c, term) for c, term in _terms(node.inputs[0])]
    if node.op == "mul" and node.inputs[0].op == "number":
        return [(node.inputs[0].value, node.inputs[1])]
    return [(1.0, node)]


def _sum(terms: Terms) -> Node:
    totals: dict[Node, float] = {}
    for coefficient, node in terms:
        totals[node] = totals.get(node, 0.0) + coefficient
    totals = {node: c for node, c in totals.items() if c}
    if not all(map(math.isfinite, totals.values())):
        raise FormulaError("a constant of the formula is too large for a number")
    if not totals:
        return number(0)
    if list(totals) == [number(1)]:
        return number(totals[number(1)])
    if all(c < 0 for c in totals.values()):
        return _node("neg", (_sum([(-c, node) for node, c in totals.items()]),))
    order = sorted(totals, key=lambda node: (totals[node] < 0, node.op == "number", *_key(node)))
    result = None
    for node in order:
        term = _scaled(abs(totals[node]), node)
        if totals[node] < 0:
            # A negative constant is a number by itself.
            term = number(-term.value) if term.op == "number" else _node("neg", (term,))
        result = term if result is None else _node("add", (result, term))
    return result


def _scaled(coefficient: float, node: Node) -> Node:
    """coefficient * node, for a coefficient of at least 0 and a node that is no number but 1."""
    if node is number(1):
        return number(coefficient)
    return node if coefficient == 1 else _node("mul", (number(coefficient), node))


# Products: a coefficient, numerators and denominators.

Factors = tuple[float, list[Node], list[Node]]


def _factors(node: Node) -> Factors:
    """The factors whose product is the node."""
    if node.op == "number":
        return node.value, [], []
    if node.op == "neg":
        coefficient, above, below = _factors(node.inputs[0])
        return -coefficient, above, below
    if node.op == "mul":
        return _merge(_factors(node.inputs[0]), _factors(node.inputs[1]))
    if node.op == "div":
        coefficient, above, below = _factors(node.inputs[0])
        return coefficient, above, [*below, node.inputs[1]]
    return 1.0, [node], []


def _merge(one: Factors, two: Factors) -> Factors:
    return one[0] * two[0], one[1] + two[1], one[2] + two[2]


def _quotient(above: Node, below: Node) -> Node:
    if not below.nonzero:
        # Table 1's division keeps its eps: only a sign can be drawn out of the denominator.
        sign, (coefficient, factors, divisors) = 1.0, _factors(above)
        if below.op == "neg":
            sign, below = -1.0, below.inputs[0]
        return _product(sign * coefficient, factors, [*divisors, below])
    coefficient, factors, divisors = _factors(below)
    return _product(*_merge(_factors(above), (1 / coefficient, divisors, factors)))


def _product(coefficient: float, above: list[Node], below: list[Node]) -> Node:
    up, down = Counter(above), Counter(below)
    for node in [node for node in up if node in down and node.nonzero]:
        common = min(up[node], down[node])
        up[node] -= common
        down[node] -= common
    factors, divisors = sorted(up.elements(), key=_key), sorted(down.elements(), key=_key)
    if not math.isfinite(coefficient):
        raise FormulaError("a constant of the formula is too large for a number")
    if coefficient == 0:
        factors = []
        if all(node.nonzero for node in divisors):
            return number(0)
    if coefficient < 0:
        return _negative(_product(-coefficient, factors, divisors))
    for node, following in zip(factors, factors[1:]):
        if node is following:
            factors.remove(node)
            factors.remove(node)
            _, square, _ = _factors(apply("square", node))
            return _product(coefficient, factors + square, divisors)
    result = None
    for node in factors:
        result = node if result is None else _node("mul", (result, node))
    for node in divisors:
        # The coefficient stands before the whole fraction, so that sums find it.
        result = _node("div", (number(1) if result is None else result, node))
    return number(coefficient) if result is None else _scaled(coefficient, result)


def _negative(node: Node) -> Node:
    return apply("neg", node)


def _maximum(one: Node, two: Node) -> Node:
    if one is two:
        return one
    if one.op == two.op == "number":
        return number(max(one.value, two.value))
    for a, b in ((one, two), (two, one)):
        if a.sign in ("+", "0+", "0") and b.sign in ("-", "0-", "0"):
            return a
        if b.op == "max" and a in b.inputs:
            return b
    return _node("max", tuple(sorted((one, two), key=lambda n: (n.op == "number", *_key(n)))))


_ODD = ("tanh", "log", "sqrt")  # f(-a) = -f(a), with table 1's log and sqrt
_EVEN = ("abs", "square")


def _function(op: str, a: Node) -> Node:
    if a.op == "number":
        folded = _constant(op, a.value)
        if folded is not None:
            return number(folded)
    if a.op == "neg" and op in _ODD:
        return _negative(apply(op, a.inputs[0]))
    if a.op == "neg" and op in _EVEN:
        return apply(op, a.inputs[0])
    if op == "abs" and a.sign in ("+", "0+"):
        return a
    if op == "abs" and a.sign in ("-", "0-"):
        return _negative(a)
    if (op, a.op) in (("square", "sqrt"), ("sqrt", "square")):
        return apply("abs", a.inputs[0])
    if (op, a.op) == ("square", "abs"):
        return apply("square", a.inputs[0])
    return _node(op, (a,))


def _constant(op: str, value: float) -> float | None:
    """The function of a number; None where it is too large for one."""
    sign = math.copysign(1.0, value) if value else 0.0
    try:
        return {
            "sigmoid": lambda: 1 / (1 + math.exp(-value)),
            "tanh": lambda: math.tanh(value),
            "exp": lambda: math.exp(value),
            "log": lambda: sign * math.log(abs(value)) if value else 0.0,
            "abs": lambda: abs(value),
            "square": lambda: value * value if math.isfinite(value * value) else None,
            "sqrt": lambda: sign * math.sqrt(abs(value)),
        }[op]()
    except OverflowError:
        return None


def _aggregate(op: str, a: Node) -> Node:
    kind, over = op.split("_")
    if not set(a.varies) & set(OVER[over]):  # all values that it would combine are equal
        if kind == "mean":
            return a
        return _node("rms_i", (number(0) if kind == "std" else apply("abs", a),))
    if a.op == "neg" and kind == "mean":
        return _negative(apply(op, a.inputs[0]))
    if a.op == "neg" or (a.op == "abs" and kind == "rms"):
        return apply(op, a.inputs[0])
    return _node(op, (a,))


# What is known of a node.


def _key(node: Node) -> tuple[int, int, str]:
    """Sorts v0 and v1 first, then x, then what is shorter."""
    rank = {"v0": 0, "v1": 0, "x": 1}.get(node.op, 2)
    return rank, len(node.text), node.text


def _varies(node: Node) -> str:
    if node.op in LEAVES:
        return "cnp" if node.op == "x" else "c"
    found = {dim for child in node.inputs for dim in child.varies}
    if node.op in AGGREGATIONS:
        over = node.op[-1]
        groups = {"g"} if over == "g" and "c" in found else set()
        found = found - set(OVER[over]) | groups
    return "".join(sorted(found))


def _sign(node: Node) -> str:
    signs = [child.sign for child in node.inputs]
    op = node.op
    if op == "number":
        return "+" if node.value > 0 else "-" if node.value < 0 else "0"
    if op in ("exp", "sigmoid") or op.startswith(("std_", "rms_")):
        return "+"
    if op in ("abs", "square"):
        return "+" if signs[0] in ("+", "-") else "0+"
    if op in ("tanh", "sqrt") or op.startswith("mean_"):
        return signs[0]
    if op == "neg":
        return _FLIPPED[signs[0]]
    if op == "add":
        return _sign_of_sum(signs)
    if op == "mul" or (op == "div" and signs[1] in ("+", "-")):
        return _sign_of_product(signs)
    if op == "max":
        if "+" in signs or "0+" in signs:
            return "+" if "+" in signs else "0+"
        return "" if "" in signs else "-" if signs == ["-", "-"] else "0-"
    return ""


_FLIPPED = {"+": "-", "0+": "0-", "0": "0", "0-": "0+", "-": "+", "": ""}


def _sign_of_sum(signs: list[str]) -> str:
    for strict, weak in (("+", "0+"), ("-", "0-")):
        if set(signs) <= {strict, weak, "0"}:
            return strict if strict in signs else weak
    return ""


def _sign_of_product(signs: list[str]) -> str:
    if "0" in signs:
        return "0"
    if "" in signs:
        return ""
    sign = "-" if sum("-" in s for s in signs) % 2 else "+"
    return sign if all(s in ("+", "-") for s in signs) else {"+": "0+", "-": "0-"}[sign]


# The text of a node.

_BINDS = {"add": 1, "mul": 2, "div": 2, "neg": 2}  # how strongly; all else is 3


def _text(node: Node) -> str:
    if node.op == "number":
        whole = node.value.is_integer() and abs(node.value) < 1e15
        return str(int(node.value)) if whole else repr(node.value)
    if node.op in LEAVES:
        return node.op
    if node.op == "add":
        one, two = node.inputs
        if two.op == "neg":
            return f"{one.text} - {bracketed(two.inputs[0], 2)}"
        if two.op == "number" and two.value < 0:
            return f"{one.text} - {number(-two.value).text}"
        return f"{one.text} + {two.text}"
    if node.op == "neg":
        return f"-{bracketed(node.inputs[0], 2)}"
    if node.op in ("mul", "div"):
        one, two = node.inputs
        sign, least = ("*", 2 if one.op == "number" else 3) if node.op == "mul" else ("/", 3)
        return f"{bracketed(one, 2)} {sign} {bracketed(two, least)}"
    return f"{node.op}({', '.join(child.text for child in node.inputs)})"


def bracketed(node: Node, least: int) -> str:
    """The node's text, in brackets if it binds less strongly than `least`."""
    binds = 1 if node.op == "number" and node.value < 0 else _BINDS.get(node.op, 3)
    return node.text if binds >= least else f"({node.text})"
