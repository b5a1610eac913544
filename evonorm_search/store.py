"""All candidates of a search and their results: one SQLite file, which only the driver writes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from evonorm_runs.errors import UserError, user_errors

from .space import Graph, dump, load

FILE = "search.sqlite"
_TABLES = """
CREATE TABLE IF NOT EXISTS candidates (
    key INTEGER PRIMARY KEY, -- which draw it was
    drawn_after INTEGER, -- how many had finished when it was drawn
    finished INTEGER UNIQUE, -- its place in the order of completion
    graph TEXT, formula TEXT, fingerprint BLOB,
    parent INTEGER, -- the key of the one that it was mutated from, if it was
    same_as INTEGER, -- the key of the one whose result it shares, if it does
    result TEXT -- of evaluation.evaluate, JSON
);
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT);
"""


class Candidate(NamedTuple):
    """A graph that passed the sieve, or that shares another one's result."""

    key: int
    graph: Graph
    formula: str
    fingerprint: bytes
    drawn_after: int
    parent: int | None = None
    same_as: int | None = None


class Store:
    """The file of a search in its folder.

    Args:
        space: what the graphs are drawn from, as text; a store keeps to one. "" for whatever it is.
        read_only: for those who look at a search, also while it runs.

    Raises:
        UserError: the file is of another space, damaged or can't be written.
    """

    def __init__(self, folder: Path, space: str = "", read_only: bool = False) -> None:
        self.path = folder / FILE
        if read_only:
            with self._errors():
                # "rw" makes no file, and undoes what a search that was killed left half written.
                address = f"{self.path.resolve().as_uri()}?mode=rw"
                self.db = sqlite3.connect(address, uri=True)
                self.db.execute("PRAGMA query_only = ON")
            return
        with self._errors():
            self.db = sqlite3.connect(self.path)
            # A result is the operating system's at once, so a kill loses none; where the power
            # fails, the last ones may be lost. To wait for the disk takes 20 ms for each.
            self.db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
            self.db.executescript(_TABLES)
            found = self.get("space", space)
            if space and found != space:
                raise UserError(f"{self.path} is of another space, {found}; this one is {space}")
        if space:
            self.set("space", space)

    def add(self, candidate: Candidate, result: dict[str, Any], **state: Any) -> None:
        """Write a result, and the state of the search, both or none."""
        row = candidate._replace(graph=dump(candidate.graph))._asdict()
        names = ", ".join([*row, "result", "finished"])
        count = "(SELECT IFNULL(MAX(finished) + 1, 0) FROM candidates)"
        marks = ", ".join("?" * (len(row) + 1))
        with self._errors(), self.db:
            self.db.execute(
                f"INSERT INTO candidates ({names}) VALUES ({marks}, {count})",
                [*row.values(), json.dumps(result)],
            )
            for name, value in state.items():
                self._set(name, value)

    def candidates(self) -> Iterator[tuple[Candidate, dict[str, Any]]]:
        """All candidates and their results, in the order of completion."""
        columns = ", ".join(Candidate._fields)
        with self._errors():
            for *row, result in self.db.execute(
                f"SELECT {columns}, result FROM candidates ORDER BY finished"
            ):
                found = Candidate(*row)
                yield found._replace(graph=load(found.graph)), json.loads(result)

    def get(self, name: str, default: Any = None) -> Any:
        """A value of the state."""
        with self._errors():
            row = self.db.execute("SELECT value FROM state WHERE name = ?", [name]).fetchone()
            return json.loads(row[0]) if row else default

    def set(self, name: str, value: Any) -> None:
        """Write a value of the state."""
        with self._errors(), self.db:
            self._set(name, value)

    def _set(self, name: str, value: Any) -> None:
        self.db.execute("REPLACE INTO state VALUES (?, ?)", [name, json.dumps(value)])

    def _errors(self) -> Any:
        kinds = (sqlite3.Error, ValueError, TypeError)
        return user_errors(*kinds, prefix=f"{self.path}: ")


def best(store: Store, top: int) -> list[tuple[Candidate, list[float]]]:
    """The trained candidates with the highest mean score, one of each formula, the best first."""
    found: dict[str, tuple[Candidate, list[float]]] = {}
    for candidate, result in store.candidates():
        if result["stage"] == "trained" and candidate.same_as is None:
            found.setdefault(candidate.formula, (candidate, result["scores"]))
    return sorted(found.values(), key=lambda row: -sum(row[1]))[:top]
