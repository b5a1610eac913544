"""The search space of section 3: computation graphs of table 1's primitives, as formulas.

A graph is a tuple of operation nodes. Values 0 to 3 are the initial nodes: the input x, a constant
zero, v0 and v1 (learnt per channel, from 0 and from 1). Operation node k makes value 4 + k from
earlier values. The last value is the output. Nodes that it does not use stay in the graph, as a
later mutation may take them up.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from evonorm.expression import (
    AGGREGATIONS,
    FUNCTIONS,
    OWN,
    FormulaError,
    Node,
    apply,
    leaf,
    number,
)
from evonorm.formula import Formula

INITIAL = (leaf("x"), number(0.0), leaf("v0"), leaf("v1"))
ELEMENTWISE = {"add": 2, "mul": 2, "div": 2, "neg": 1, **FUNCTIONS}
OPS = {**ELEMENTWISE, **AGGREGATIONS}  # table 1: name and number of inputs

Operation = tuple[str, tuple[int, ...]]  # an op, and the numbers of the values that it takes
Graph = tuple[Operation, ...]


@dataclass(frozen=True)
class Space:
    """What a search draws graphs from.

    Attributes:
        nodes: operation nodes of a graph. The paper does not say how many; 10 is our choice.
        batch: with the aggregations over the batch, as in the B search; without, the S search.
        own: functions beside table 1's; see :func:`evonorm.register_function`.
    """

    nodes: int = 10
    batch: bool = True
    own: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ValueError(f"a graph has {self.nodes} operation nodes, but needs at least 1")
        for name in self.own:
            if name not in OWN:
                known = ", ".join(OWN) or "none"
                raise ValueError(f"no function {name!r} is registered; registered are {known}")

    def __repr__(self) -> str:  # a store keeps it
        own = f", own={self.own}" if self.own else ""
        return f"Space(nodes={self.nodes}, batch={self.batch}{own})"

    @cached_property
    def ops(self) -> list[str]:
        """Those that a node may have, in a fixed order."""
        table = [op for op in OPS if self.batch or not op.endswith("_b")]
        return [*table, *self.own]

    def inputs(self, op: str) -> int:
        """How many inputs an op takes."""
        return OWN[op].inputs if op in self.own else OPS[op]

    def random(self, rng: Random) -> Graph:
        """A graph drawn node by node, each op and each input uniformly (section 3.1)."""
        return tuple(self.operation(place, rng) for place in range(self.nodes))

    def mutate(self, graph: Graph, rng: Random, times: int = 1) -> Graph:
        """The graph with `times` nodes drawn anew, one after the other (section 4.3).

        A node is chosen uniformly, and gets an op and inputs drawn uniformly. It may be one that
        the output does not use, and may come out as it was.
        """
        nodes = list(graph)
        for _ in range(times):
            place = rng.randrange(len(nodes))
            nodes[place] = self.operation(place, rng)
        return tuple(nodes)

    def operation(self, place: int, rng: Random) -> Operation:
        """The node of a place, its op and inputs drawn uniformly."""
        op = rng.choice(self.ops)
        earlier = len(INITIAL) + place
        return op, tuple(rng.randrange(earlier) for _ in range(self.inputs(op)))

    def check(self, graph: Graph) -> None:
        """Raise a ValueError of one line if a graph is not of this space."""
        if len(graph) != self.nodes:
            raise ValueError(f"a graph has {len(graph)} operation nodes, not {self.nodes}")
        known = set(self.ops)
        for place, (op, inputs) in enumerate(graph):
            if op not in known:
                raise ValueError(f"operation node {place} has the op {op!r}, which is none here")
            earlier = len(INITIAL) + place
            if len(inputs) != self.inputs(op) or not all(0 <= i < earlier for i in inputs):
                raise ValueError(f"operation node {place} ({op}) has the inputs {list(inputs)}")


def used(graph: Graph) -> list[int]:
    """The operation nodes that the output depends on, in order."""
    found = {len(graph) - 1}
    for place in reversed(range(len(graph))):
        if place in found:
            found |= {i - len(INITIAL) for i in graph[place][1] if i >= len(INITIAL)}
    return sorted(found)


def depends_on_input(graph: Graph) -> bool:
    """Whether there is a way from x to the output; the values may be constant all the same."""
    return any(0 in graph[place][1] for place in used(graph))


def formula(graph: Graph) -> Formula | None:
    """What the graph computes, in canonical form; None if it has no formula.

    What would be longer than a formula may be has none.
    """
    values: dict[int, Node] = dict(enumerate(INITIAL))
    try:
        for place in used(graph):
            op, inputs = graph[place]
            values[len(INITIAL) + place] = apply(op, *(values[i] for i in inputs))
        return Formula(values[len(INITIAL) + len(graph) - 1])
    except (FormulaError, OverflowError, RecursionError):
        return None


def graph_of(operations: Sequence[tuple[str, Sequence[int]]]) -> Graph:
    """A graph from lists, such as JSON holds."""
    return tuple((str(op), tuple(int(i) for i in inputs)) for op, inputs in operations)


def dump(graph: Graph) -> str:
    """A graph as one line of JSON, which :func:`load` reads."""
    return json.dumps(graph, separators=(",", ":"))


def load(text: str) -> Graph:
    """The graph in a line of JSON."""
    return graph_of(json.loads(text))
