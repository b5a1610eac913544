"""Graphs of given formulas, for a search that starts from them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from evonorm import formula_of
from evonorm.expression import Node, apply, number
from evonorm.formula import Formula
from evonorm_runs.random_state import mix

from .space import INITIAL, Graph, Operation, Space, formula


def first_graphs(norm_acts: Sequence[str], space: Space, seed: int) -> list[Graph]:
    """A graph for each name or formula; its unused nodes are a function of the seed.

    Raises:
        ValueError: one has no formula, or the space has no graph for it.
    """
    return [
        graph_for(norm_act, space, Random(mix(seed, key))) for key, norm_act in enumerate(norm_acts)
    ]


def graph_for(norm_act: str, space: Space, rng: Random) -> Graph:
    """A graph of the space that computes what a name or formula stands for.

    The nodes that it does not need come first and are drawn at random, as material for mutations.

    Raises:
        ValueError: it has no formula, or the space has no graph for it.
    """
    wanted = formula_of(norm_act)
    if wanted is None:
        raise ValueError(f"{norm_act!r} is no formula, nor a name that stands for one")
    needed = _operations(wanted)
    missing = [op for op, _ in needed if op not in space.ops]
    if missing:
        raise ValueError(f"{norm_act!r} needs {missing[0]}, which the space does not have")
    free = space.nodes - len(needed)
    if free < 0 or not needed:
        count = f"{len(needed)} operation nodes, SPACE.NODES is {space.nodes}"
        raise ValueError(f"{norm_act!r} needs {count if needed else 'no operation'}")
    first = len(INITIAL)
    moved = [(op, tuple(i if i < first else i + free for i in ins)) for op, ins in needed]
    graph = (*(space.operation(place, rng) for place in range(free)), *moved)
    if formula(graph) != wanted:
        raise ValueError(f"{norm_act!r}: no graph for it was found")
    return graph


def _operations(wanted: Formula) -> list[Operation]:
    """The operations that compute a formula, with inputs numbered as in a graph without others."""
    found: list[Operation] = []
    places = {node: place for place, node in enumerate(INITIAL)}

    def place(node: Node) -> int:
        if node not in places:
            op, inputs = _made_of(node) if node.op == "number" else (node.op, node.inputs)
            values = tuple(map(place, inputs))
            found.append((op, values))
            places[node] = len(INITIAL) + len(found) - 1
        return places[node]

    place(wanted.root)
    return found


def _made_of(node: Node) -> tuple[str, tuple[Node, ...]]:
    """An operation on smaller numbers that gives this one; the initial nodes have 0 only."""
    value = node.value
    if value < 0:
        return "neg", (number(-value),)
    for op in ("exp", "sigmoid"):
        if apply(op, number(0)) is node:  # 1 and 0.5
            return op, (number(0),)
    if value.is_integer() and value <= 8:
        return "add", (number(value - 1), number(1))
    raise ValueError(f"the number {node.text} has no graph: those of 1, 0.5 and 2 to 8 have one")
