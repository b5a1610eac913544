"""Read logs and curves in the folders of runs, and the tables of reproductions."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

LOG, TABLE = "log.txt", "table.json"
RULE = re.compile(r"-+  -+\s*")
FIGURE = re.compile(r"[-+−–]?$|[-+−–~]?\d")  # "", "-", "45.8", "−0.3 ± 0.1", "104.6/113.9"
LARGEST_JSON = 2**20  # bytes; a curve or a table is far smaller


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        notes: sentences below it.
        paper: the table with the paper's figures, if there is one.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    paper: Table | None = None

    @property
    def of_figures(self) -> list[bool]:
        """For each column whether all its cells are figures or empty."""
        columns = zip(*self.rows) if self.rows else ([] for _ in self.columns)
        return [all(FIGURE.match(cell) for cell in column) for column in columns]


@dataclass(frozen=True)
class Confusion:
    """How many images of a class, by its number, got which answer: counts[label, answer]."""

    classes: list[str]
    counts: dict[tuple[int, int], int]

    @cached_property
    def images(self) -> Counter[int]:
        """The number of images of each class."""
        found: Counter[int] = Counter()
        for (label, _), n in self.counts.items():
            found[label] += n
        return found

    def most_frequent(self, most: int) -> list[tuple[str, str, int, int]]:
        """The most frequent mistakes: class, answer, how many, and the images of the class."""
        wrong = [(n, pair) for pair, n in self.counts.items() if pair[0] != pair[1]]
        chosen = sorted(wrong, key=lambda row: (-row[0], row[1]))[:most]
        return [(self.classes[a], self.classes[b], n, self.images[a]) for n, (a, b) in chosen]


def environment(folder: Path) -> dict[str, str]:
    """The versions and the machine that Detectron2 wrote into log.txt; empty if it wrote none.

    If a run was continued, they are those of its last start.
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
        elif key:  # a long value has several lines
            values[key] += " " + line.strip()
    return {}  # the log ends within the table


def peak_memory(folder: Path) -> float | None:
    """The most memory of the GPU in MiB, as Detectron2 logs it; None on a CPU."""
    found = re.findall(r"max_mem: (\d{1,9})M", _log(folder))
    return max(map(float, found), default=None)


def _log(folder: Path) -> str:
    path = folder / LOG
    return path.read_text(errors="replace") if path.is_file() else ""


def truncation_curves(folder: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """The curves that tools/eval_gan.py --truncation-curve wrote into a run's folder.

    Returns:
        for each curve the name of its file, and its rows; a row holds "truncation" and metrics.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        rows = _load(path).get("curve")
        if isinstance(rows, list) and all(isinstance(r, dict) and "truncation" in r for r in rows):
            found.append((path.name, rows))
    return found


def confusion(folder: Path) -> Confusion | None:
    """What tools/train_classifier.py wrote into confusion.json; None if that is not there."""
    data = _load(folder / "confusion.json")
    classes, counts = data.get("classes"), data.get("counts")
    if not isinstance(classes, list) or not isinstance(counts, list) or not counts:
        return None
    try:
        found = {(label, answer): n for label, answer, n in counts}
        if not all(type(x) is int and 0 <= x < len(classes) for pair in found for x in pair):
            return None
        if not all(type(n) is int and n > 0 for n in found.values()):
            return None
    except (TypeError, ValueError):
        return None
    return Confusion([str(name) for name in classes], found)


def known_accuracies(folder: Path) -> dict[str, float]:
    """BN-ReLU's accuracies by network, fractions, that a survey of random layers measured."""
    known = _load(folder / "survey.json").get("known")
    if not isinstance(known, dict):
        return {}
    numbers = {name: value for name, value in known.items() if isinstance(value, float)}
    return {name: value for name, value in numbers.items() if 0 <= value <= 1}


def tables(folders: Iterable[Path]) -> tuple[list[Table], list[str]]:
    """The tables (table.json) in these folders, and notes on those that could not be read."""
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
    """A table from its JSON: "title", "columns", "rows", "notes" and "paper".

    "paper" is a text, a list of texts, rows, or a table of its own.
    """
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
    """The object in a JSON file; empty if the file holds anything else."""
    if not path.is_file() or path.stat().st_size > LARGEST_JSON:
        return {}
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
