"""A candidate's graph as a picture: SVG, columns from the inputs on the left to the output."""

from __future__ import annotations

from statistics import fmean

from .space import INITIAL, Graph, used

WIDTH, HEIGHT = 66, 26  # of a node, in pixels
ACROSS, DOWN = 110, 44  # from node to node
_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" '
    'font-family="sans-serif" font-size="12" text-anchor="middle">'
)
_STYLE = {True: 'stroke="#222"', False: 'stroke="#bbb" stroke-dasharray="3 3"'}


def svg(graph: Graph) -> str:
    """The graph; what the output does not use is dashed, and the output has a thick frame.

    The first input of an operation enters it above the second one: a div is upper / lower.
    """
    count = len(INITIAL)
    inputs = {count + place: sources for place, (_, sources) in enumerate(graph)}
    wanted = {count + place for place in used(graph)}
    wanted |= {source for value in wanted for source in inputs[value]}
    names = {count + place: op for place, (op, _) in enumerate(graph)}
    sources = {source for found in inputs.values() for source in found}
    names |= {i: node.text for i, node in enumerate(INITIAL) if i in sources}
    columns, rows = layout({value: inputs.get(value, ()) for value in names})
    width = ACROSS * (1 + max(columns.values()))
    height = DOWN * (1 + max(row for own in rows for row in own.values()))
    parts = [_HEAD.format(width, height)]
    for value, found in inputs.items():
        for i, source in enumerate(found):
            lane = range(columns[source], columns[value])
            line = _line([(column, rows[column][source]) for column in lane])
            x, y = _corner(columns[value], rows[columns[value]][value])
            line += _curve(x, y + HEIGHT * (i + 1) // (len(found) + 1))
            parts.append(f'<path d="{line}" fill="none" {_STYLE[value in wanted]}/>')
    for value in sorted(names):
        x, y = _corner(columns[value], rows[columns[value]][value])
        thick = ' stroke-width="2.5"' if value == count + len(graph) - 1 else ""
        fill = "#fff" if value >= count else "#e8eef7"
        parts.append(
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="{fill}" '
            f"{_STYLE[value in wanted]}{thick}/>"
            f'<text x="{x + WIDTH // 2}" y="{y + 17}">{names[value]}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def layout(
    inputs: dict[int, tuple[int, ...]],
) -> tuple[dict[int, int], list[dict[int, int]]]:
    """The column of each value; and for each column the rows of its values.

    Args:
        inputs: of each value, earlier values; none of an initial one.

    A value's column is one behind the last of its inputs. A value that is used farther behind has a
    row in the columns between too, where its line passes. In a column those come first whose inputs
    lie higher.
    """
    columns: dict[int, int] = {}
    for value in sorted(inputs):
        columns[value] = 1 + max((columns[source] for source in inputs[value]), default=-1)
    ends = dict(columns)  # the last column where a value has a row
    for value, found in inputs.items():
        for source in found:
            ends[source] = max(ends[source], columns[value] - 1)
    rows: list[dict[int, int]] = []
    for column in range(1 + max(columns.values())):
        own = [value for value in sorted(inputs) if columns[value] <= column <= ends[value]]
        before = {v: inputs[v] if columns[v] == column else (v,) for v in own}
        heights = {v: fmean(rows[-1][source] for source in before[v]) if column else v for v in own}
        rows.append({value: row for row, value in enumerate(sorted(own, key=heights.get))})
    return columns, rows


def _corner(column: int, row: int) -> tuple[int, int]:
    return ACROSS * column + 20, DOWN * row + 9


def _line(places: list[tuple[int, int]]) -> str:
    """From the right of the first place, through all others."""
    (x, y), *others = (_corner(*place) for place in places)
    line = f"M{x + WIDTH} {y + HEIGHT // 2}"
    for x, y in others:
        line += _curve(x, y + HEIGHT // 2) + f"H{x + WIDTH}"
    return line


def _curve(x: int, y: int) -> str:
    """From the end of the column before to a point at the left of a column."""
    middle = x - (ACROSS - WIDTH) // 2
    return f"S{middle} {y} {x} {y}"
