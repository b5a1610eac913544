"""A search's folder from a published table: it can be looked at, reranked and gone on with.

With one process a search is a function of its seed and of what the evaluations give. The table has
these, so the search is run once more with the table in the place of the trainings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.folder import claimed

from .config import load_config, parts
from .search import Search
from .store import FILE, Store
from .table import read_table

RESULT = ("stage", "quality", "worst", "scores", "curves", "seconds")


def rebuild(table: Path, name: str, folder: Path, overrides: Sequence[str] = ()) -> Store:
    """Write the store of a search in a table to a new folder.

    Args:
        name: the search's, as in the table's column `search`.
        overrides: KEY VALUE of other settings that the search had; the table does not tell them.

    Raises:
        UserError: no such table or search; a folder that holds one; a search of several processes,
            or of a version that draws otherwise.
    """
    with user_errors(KeyError, TypeError, prefix=f"{table}: a line is no row of a search: "):
        searches: dict[str, list[dict[str, Any]]] = {}
        for row in read_table(table):
            searches.setdefault(row["search"], []).append(row)
        if name not in searches:
            known = ", ".join(sorted(searches))
            raise UserError(f"{table} has no search that is named {name!r}; it has {known}")
        own = [row for row in searches[name] if row["same_as"] is None]
        results = {row["formula"]: {key: row[key] for key in RESULT} for row in own}
        settings = [*_settings(searches[name][0]), "CANDIDATES", str(len(own))]
    cfg = load_config(None, [*settings, "OUTPUT_DIR", str(folder), *overrides])
    with claimed(cfg.OUTPUT_DIR, [FILE], resume=False):
        store = Store(folder, repr(parts(cfg)[0]))
        store.set("config", cfg.dump())
        search = Search(cfg, store)
        while search.evaluated < len(own):
            candidate = search.propose()
            if candidate.formula not in results:
                raise UserError(
                    f"{table}: {name} draws {candidate.formula} again, which the table does not "
                    "have: it had several processes, settings that are not named here, or a "
                    "version that draws otherwise"
                )
            search.record(candidate, results[candidate.formula])
        return store


def _settings(row: dict[str, Any]) -> list[str]:
    """KEY VALUE of a search, from the columns of any of its rows."""
    keys = {
        "SEED": "seed",
        "SPACE.BATCH": "batch",
        "SPACE.NODES": "nodes",
        "EVOLUTION.WINNER": "winner",
        "EVOLUTION.RANDOM_CHILDREN": "random_children",
    }
    found = [part for key, column in keys.items() for part in (key, str(row[column]))]
    return [*found, "ANCHORS", str(tuple(row["anchors"]))]
