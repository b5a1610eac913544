"""Read the folders of runs. Their files may be damaged, or written to do harm."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from evonorm_runs.errors import UserError, one_line, user_errors
from evonorm_runs.folder import read_metrics

from .kinds import OTHER, RUN_KINDS
from .runs import CONFIG, FAILED, JOB, METRICS, STORE, RunFolder, number
from .searches import read_search

LONGEST = 300  # characters; longer values of a config are cut
LARGEST = 20_000  # values of a config, since aliases could stand for endlessly many


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The folders of runs among these folders and below them, each once. A run holds no other run.

    Raises:
        UserError: one of them is no folder, or there is no run in it.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise UserError(f"{folder} {what}: name the folders of runs")
        with user_errors(OSError):
            os.listdir(folder)  # which os.walk would pass over
        below = list(_walk(folder))
        if not below:
            raise UserError(f"no runs found in {folder}: the folder of a run holds {METRICS}")
        for path in below:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _walk(folder: Path) -> Iterator[Path]:
    for at, subfolders, files in os.walk(folder):
        if {METRICS, CONFIG, FAILED, STORE} & set(files):
            subfolders.clear()
            yield Path(at)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))


def read_runs(folders: Sequence[Path]) -> list[RunFolder]:
    """The runs of :func:`find_runs`, in the order of their kinds.

    Raises:
        UserError: as :func:`find_runs`.
    """
    paths = find_runs(folders)
    names = _names(paths)
    runs = [read_run(path, name, 0) for path, name in zip(paths, names)]
    order = [*RUN_KINDS, OTHER]
    runs.sort(key=lambda run: order.index(run.kind))
    return [replace(run, index=i) for i, run in enumerate(runs)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The names of the folders; if two are alike, the paths from the folder that holds them all."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) == len(names):
        return names
    top = os.path.commonpath([path.resolve() for path in paths])
    return [os.path.relpath(path.resolve(), top) for path in paths]


def read_run(folder: Path, name: str, index: int) -> RunFolder:
    """Read a run's folder. What can't be read in it is left out, and a note says so."""
    run = RunFolder(folder, name, index)
    readers = {
        METRICS: _read_metrics,
        CONFIG: _read_config,
        JOB: _read_job,
        STORE: read_search,
    }
    for file, read in readers.items():
        if not (folder / file).exists():
            continue
        try:
            _check_regular(folder / file)
            read(run)
        except (ArithmeticError, OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            run.notes.append(f"{file} can't be read: {one_line(error)[:LONGEST]}")
    last = {key: values[max(values)] for key, values in run.series.items()}
    run.notes.extend(filter(None, [run.kind.note(last)]))
    if (folder / FAILED).is_file():
        try:
            text = (folder / FAILED).read_text(errors="replace")
        except OSError as error:
            text = one_line(error)
        lines = text.strip().splitlines()
        reason = lines[0][: 2 * LONGEST] if lines else "no reason given"
        run = replace(run, failed=reason)
    return run


def _check_regular(path: Path) -> None:
    if not path.is_file():
        raise ValueError("not a regular file")  # a FIFO would never answer


def _read_config(run: RunFolder) -> None:
    run.config.update(read_config((run.folder / CONFIG).read_bytes()))


def _read_job(run: RunFolder) -> None:
    job = json.loads((run.folder / JOB).read_bytes())
    if isinstance(job, dict) and isinstance(job.get("settings"), list):
        run.job.update(job)


def _read_metrics(run: RunFolder) -> None:
    lines, damaged = read_metrics(run.folder)
    for line in lines:
        step = number(line.get("iteration", line.get("step")))
        if step is None or not math.isfinite(step):
            damaged += 1
            continue
        numbers = {key: number(value) for key, value in line.items() if key != "iteration"}
        values = {key: value for key, value in numbers.items() if value is not None}
        run.lines.append({**values, "step": step})
    if damaged:
        plural = "s" * (damaged > 1)
        run.notes.append(f"{METRICS}: {damaged} damaged line{plural} left out")


def read_config(text: bytes) -> dict[str, str]:
    """The values of a yaml file as text, by their keys joined with dots.

    Raises:
        ValueError, yaml.YAMLError: not yaml, not a config, or of endlessly many values.
    """
    data = yaml.safe_load(text)  # the loader in C would crash where values nest too deeply
    if not isinstance(data, dict):
        raise ValueError("not a config, which would consist of keys and values")
    _check_size(data)
    return dict(_flatten(data))


def _check_size(data: Any) -> None:
    waiting, seen = [data], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if isinstance(node, (dict, list, tuple, set)):
            waiting += node.values() if isinstance(node, dict) else node
        if seen + len(waiting) > LARGEST:
            raise ValueError(f"it has more than {LARGEST} values")


def _flatten(data: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            text = str(value)
            yield f"{prefix}{key}", text if len(text) <= LONGEST else text[:LONGEST] + " …"
