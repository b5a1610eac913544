"""A part of a check on a machine that is lent for minutes: its process, its limit, its file."""

from __future__ import annotations

import json
import multiprocessing
import traceback
from pathlib import Path
from typing import Any, Callable

from evonorm_runs.errors import one_line, user_errors
from evonorm_runs.files import atomic_write

from . import layers

SECONDS = 530  # that a part may take: some machines stop a command after ten minutes
COMPLETE = "complete"


class Part:
    """A part's options and what it has found, in a file that is written anew with every result.

    `tiny` means shapes of milliseconds.
    """

    def __init__(self, name: str, out: Path, device: str, tiny: bool) -> None:
        self.name, self.file, self.device, self.tiny = name, file_of(out, name), device, tiny
        self.record: dict[str, Any] = {
            "part": name,
            "tiny": tiny,
            **layers.machine(device),
            "results": [],
            "left_out": [],
        }
        self.write()

    def add(self, *results: dict[str, Any]) -> None:
        self.record["results"] += results
        self.write()

    def leave_out(self, line: str) -> None:
        print(f"{self.name}: {line}")
        self.record["left_out"].append(line)
        self.write()

    def write(self, **more: Any) -> None:
        self.record |= more
        save(self.file, self.record)


def save(file: Path, record: dict[str, Any]) -> None:
    with atomic_write(file) as to:
        to.write((json.dumps(record, indent=1) + "\n").encode())


def file_of(out: Path, name: str) -> Path:
    return out / f"{name}.json"


def read(out: Path, name: str) -> dict[str, Any] | None:
    """What a part has left, or None."""
    file = file_of(out, name)
    with user_errors(ValueError, OSError, prefix=f"{file}: "):
        return json.loads(file.read_text()) if file.exists() else None


def run(measure: Callable[[Part], None], name: str, out: Path, device: str, tiny: bool) -> str:
    """Let `measure` work on a part, in a process of its own: after a fault none can use a GPU.

    Returns:
        how it ended, which its file says too: COMPLETE or what went wrong.
    """
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(measure, name, out, device, tiny)
    )
    file_of(out, name).unlink(missing_ok=True)
    process.start()
    process.join(SECONDS)
    ended = f"ended with status {process.exitcode}"
    if process.is_alive():
        process.terminate()
        process.join(5)
        process.kill()
        process.join()
        ended = f"stopped after {SECONDS} s"
    record = read(out, name) or {"part": name, "results": [], "left_out": []}
    if "ended" not in record:
        record["ended"] = ended
        save(file_of(out, name), record)
    return record["ended"]


def _run(measure: Callable[[Part], None], name: str, out: Path, device: str, tiny: bool) -> None:
    part = Part(name, out, device, tiny)
    try:
        measure(part)
    except Exception as error:
        traceback.print_exc()
        line = f"{type(error).__name__}: {one_line(error)}"
        part.write(ended=line[:500], traceback=traceback.format_exc())
        return
    part.write(ended=COMPLETE)
