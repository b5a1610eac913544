"""What a run's folder may hold beside its config and metrics, and tables of a reproduction."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOG, TABLE = "log.txt", "table.json"
RULE = re.compile(r"-+  -+\s*")
FIGURE = re.compile(r"[-+−–]?$|[-+−–~]?\d")  # "", "-", "45.8", "−0.3 ± 0.1", "104.6/113.9"
LARGEST_JSON = 2**20  # bytes; a curve or a table is far smaller


@dataclass(frozen=True)
class Table:
    """A table of text, as it is printed.

    Attributes:
        notes: sentences below it.
        paper: what the paper has instead, also as a table, if anything.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    paper: Table | None = None

    @property
    def of_figures(self) -> list[bool]:
        """Of each column whether its cells are figures, as far as there is something in them."""
        columns = zip(*self.rows) if self.rows else ([] for _ in self.columns)
        return [all(FIGURE.match(cell) for cell in column) for column in columns]


def environment(folder: Path) -> dict[str, str]:
    """Versions and machine as Detectron2 wrote them at the start of log.txt; empty if it did not.

    Of a run that was continued it is those of its last start.
    """
    _, found, after = _log(folder).rpartition("Environment info:\n")
    values: dict[str, str] = {}
    if not found:
        return values
    lines = iter(after.split("\n"))
    if not RULE.fullmatch(next(lines)):
        return values
    key = ""
    for line in lines:
        if RULE.fullmatch(line):
            return values
        name, _, value = line.partition("  ")
        if name.strip():
            key = name.strip()
            values[key] = value.strip()
        elif key:  # a long value goes on
            values[key] += " " + line.strip()
    return {}  # the log ends within


def peak_memory(folder: Path) -> float | None:
    """The most memory of the GPU in MiB, as Detectron2 logs it; None on a CPU."""
    found = re.findall(r"max_mem: (\d{1,9})M", _log(folder))
    return max(map(float, found), default=None)


def _log(folder: Path) -> str:
    path = folder / LOG
    return path.read_text(errors="replace") if path.is_file() else ""


def truncation_curves(folder: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """The curves that tools/eval_gan.py --truncation-curve left in a run's folder.

    Returns:
        of each the file's name and its rows, "truncation" and metrics in each.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        rows = _load(path).get("curve")
        if isinstance(rows, list) and all(isinstance(r, dict) and "truncation" in r for r in rows):
            found.append((path.name, rows))
    return found


def tables(folders: Iterable[Path]) -> tuple[list[Table], list[str]]:
    """The tables of a reproduction (table.json) in these folders, and what could not be read."""
    found, notes = [], []
    for path in (folder / TABLE for folder in folders):
        if not path.is_file():
            continue
        try:
            found.append(_table(_load(path)))
        except (AttributeError, KeyError, TypeError, ValueError):
            notes.append(f"{path} is not a table of a reproduction: it can't be shown")
    return found, notes


def _table(data: dict[str, Any]) -> Table:
    """From {"title", "columns", "rows", "notes", "paper"}; "paper" is text, rows, or a table."""
    columns = [str(column) for column in data["columns"]]
    notes = data.get("notes") or []
    notes = [notes] if isinstance(notes, str) else [str(note) for note in notes]
    title = str(data.get("title") or "Results")
    paper, table = data.get("paper"), None
    if isinstance(paper, dict):
        table = _table({"columns": columns, "title": "The paper's figures", **paper})
    elif isinstance(paper, list) and paper and all(isinstance(row, list) for row in paper):
        table = Table("The paper's figures", columns, _rows(paper, columns))
    elif paper:
        notes += [f"The paper: {x}" for x in (paper if isinstance(paper, list) else [paper])]
    return Table(title, columns, _rows(data["rows"], columns), notes, table)


def _rows(rows: list[list[Any]], columns: list[str]) -> list[list[str]]:
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise ValueError("rows and columns do not match")
    return [["" if cell is None else str(cell) for cell in row] for row in rows]


def _load(path: Path) -> dict[str, Any]:
    """An object from a json file; empty if it is none."""
    if path.stat().st_size > LARGEST_JSON:
        return {}
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
