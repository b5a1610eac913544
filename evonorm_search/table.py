"""The published table of searches: a line of JSON for each candidate, compressed where the file's
name ends with .gz. docs/results/search.md describes its columns."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import atomic_write

from .store import FILE, Store

SHARED = ("stage", "scores")  # the columns of a result that a candidate has which shares it
STAGES = {"quality": "low quality", "stability": "unstable", "trained": "trained"}


def write_table(folders: Sequence[Path], out: Path) -> None:
    """Write the candidates of searches to a new file.

    Raises:
        UserError: a folder without a store, a damaged store, a file that is there already.
    """
    if out.exists():
        raise UserError(f"{out}: File exists; name a new one")
    with user_errors(OSError), atomic_write(out) as file:
        lines = (json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows(folders))
        if out.suffix != ".gz":
            file.writelines(lines)
            return
        # Without a name and a time, so that equal tables are equal files.
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            packed.writelines(lines)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a table.

    Raises:
        UserError: the file is not there or damaged.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with user_errors(OSError, EOFError, ValueError, prefix=f"{path}: "), opened(path, "rb") as file:
        return [json.loads(line) for line in file]


def rows(folders: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The candidates of searches as dictionaries, in the order in which they ended."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    for name, folder in zip(names, folders):
        if not (folder / FILE).exists():
            raise UserError(f"{folder}: not the folder of a search, as it has no {FILE}")
        store = Store(folder, read_only=True)
        search = {"search": name, **_settings(store)}
        for candidate, result in store.candidates():
            row = candidate._replace(fingerprint=candidate.fingerprint.hex())._asdict()
            if candidate.same_as is not None:
                result = {key: result[key] for key in SHARED}
            yield {**search, **row, **result}


def _settings(store: Store) -> dict[str, Any]:
    """What makes searches differ, from the config in the store; empty if it has none."""
    with user_errors(yaml.YAMLError, prefix=f"{store.path}: "):
        config = yaml.safe_load(store.get("config", "")) or {}
    if not config:
        return {}
    return {
        "seed": config["SEED"],
        "batch": config["SPACE"]["BATCH"],
        "nodes": config["SPACE"]["NODES"],
        "winner": config["EVOLUTION"]["WINNER"],
        "random_children": config["EVOLUTION"]["RANDOM_CHILDREN"],
        "anchors": list(config["ANCHORS"]),
    }


def summary(table: Iterable[dict[str, Any]]) -> str:
    """A table in Markdown with a line for each search: what was evaluated, and the best layer."""
    searches: dict[str, list[dict[str, Any]]] = {}
    for row in table:
        searches.setdefault(row["search"], []).append(row)
    heads = ["search", "space", "seed", "children", "rows", "evaluated", *STAGES.values()]
    lines = [[*heads, "core-hours", "best accuracy (%)"]]
    for name, found in searches.items():
        own = [row for row in found if row["same_as"] is None]
        ended = [row["stage"] for row in own]
        best = max((fmean(row["scores"]) for row in own if row["scores"]), default=None)
        children = f"{found[0].get('winner', '–')}, {found[0].get('random_children', '–')} random"
        lines.append(
            [
                name,
                {True: "B", False: "S"}.get(found[0].get("batch"), "–"),
                f"{found[0].get('seed', '–')}",
                "random" if found[0].get("random_children") == 1 else children,
                f"{len(found)}",
                f"{len(own)}",
                *(f"{ended.count(stage)}" for stage in STAGES),
                f"{sum(row.get('seconds', 0) for row in own) / 3600:.1f}",
                "–" if best is None else f"{100 * best:.1f}",
            ]
        )
    return markdown(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of these cells in Markdown; the first line is its head."""
    head, *body = ("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])
