"""A grid of independent runs. Each run is a process, and has a folder of its own.

The folder holds what the run's tool writes, `job.json` (the settings and, once the run has ended
well, its seconds), `output.txt` (what it printed) and, if it failed, `failed.txt` (the reason, in
one line). A finished run is not run again; one that failed or was interrupted goes on from its
checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable

from .checkout import ROOT
from .errors import UserError, user_errors
from .files import atomic_write
from .pool import over_all


@dataclass(frozen=True)
class Job:
    """A run of one of the training tools, or a search."""

    folder: Path
    tool: str  # its path from the repository's root, "tools/train_net.py"
    config: str  # likewise
    settings: tuple[str, ...]  # KEY VALUE KEY VALUE ...

    def command(self, gpus: int) -> list[str]:
        """The arguments to start Python with, for one process or one for each of `gpus` GPUs."""
        launcher: list[str] = []
        options = ["--config-file", str(ROOT / self.config), "--resume"]
        if self.tool == "tools/search_layers.py":  # which has other commands too
            options.insert(0, "run")
        if gpus > 1 and self.tool == "tools/train_net.py":
            options += ["--num-gpus", str(gpus), "--dist-url", "auto"]  # auto: a free port
        elif gpus > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}"]
        settings = [*self.settings, "OUTPUT_DIR", str(self.folder)]
        return [*launcher, str(ROOT / self.tool), *options, *settings]


def finished(job: Job) -> bool:
    """Whether the run has ended well.

    Raises:
        UserError: its folder holds a run of other settings.
    """
    file = job.folder / "job.json"
    if not file.exists():
        return False
    with user_errors(ValueError, KeyError, TypeError, prefix=f"{file} is damaged: "):
        found = json.loads(file.read_text())
        old = list(found["settings"])
    new = [job.tool, job.config, *job.settings]
    if old != new:
        there, here = (set(zip(x[2::2], x[3::2])) for x in (old, new))
        parts = (("has", sorted(there - here)), ("not", sorted(here - there)))
        differ = ", ".join(f"{word} {key} {value}" for word, x in parts for key, value in x)
        raise UserError(
            f"{job.folder} holds a run of other settings ({differ or old[1]}): name another --out"
        )
    return "seconds" in found


def failure(job: Job) -> str | None:
    """Why the run failed last time, None if it did not."""
    file = job.folder / "failed.txt"
    return file.read_text().strip() if file.exists() else None


def run_jobs(
    jobs: Sequence[Job],
    at_once: int = 1,
    gpus: int = 0,
    ray_address: str | None = None,
    say: Callable[[str], None] = partial(print, flush=True),
) -> None:
    """Run the unfinished jobs, `at_once` at a time on this machine, or as tasks on a Ray cluster.

    If a run fails, the others go on; :func:`failure` tells why it failed.

    Args:
        gpus: GPUs for each run. With several runs at once each gets its own.
        ray_address: the address of a cluster, as :func:`ray.init` takes it ("auto"; "local" for
            this machine alone). Its machines share this file system and have this package.

    Raises:
        UserError: a folder holds a run of other settings, or Ray is missing or can't be reached.
    """
    waiting = [job for job in jobs if not finished(job)]
    if not waiting:
        return
    say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished, {len(waiting)} to go")
    work = partial(run_job, gpus=gpus)
    start = time.perf_counter()
    for i, (job, reason) in enumerate(over_all(work, waiting, at_once, gpus, ray_address), 1):
        left = (time.perf_counter() - start) / i * (len(waiting) - i)
        eta = f"; about {math.ceil(left / 60)} min to go" if i < len(waiting) else ""
        outcome = f"FAILED: {reason}" if reason else "done"
        say(f"[{i}/{len(waiting)}] {job.folder}: {outcome}{eta}")


def run_job(job: Job, environment: dict[str, str], gpus: int = 0) -> str | None:
    """Run a job to its end. Returns why it failed, None if it ended well."""
    with user_errors(OSError):
        job.folder.mkdir(parents=True, exist_ok=True)
        lock = open(job.folder / "lock", "w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return "another process is still at work in its folder"
        if finished(job):  # meanwhile, by another process
            return None
        resumed = (job.folder / "job.json").exists()
        record: dict[str, Any] = {"settings": [job.tool, job.config, *job.settings]}
        _write(job.folder / "job.json", json.dumps(record))
        (job.folder / "failed.txt").unlink(missing_ok=True)
        start = time.perf_counter()
        with open(job.folder / "output.txt", "ab") as output:
            begin = output.tell()
            process = subprocess.run(
                [sys.executable, *job.command(gpus)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                pass_fds=[lock.fileno()],  # if this process dies, the run keeps the lock
            )
        if process.returncode == 0:
            # If the run was interrupted, the time before that is not known.
            record["seconds"] = None if resumed else round(time.perf_counter() - start, 1)
            _write(job.folder / "job.json", json.dumps(record))
            return None
        if process.returncode in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        reason = _reason(process.returncode, job.folder / "output.txt", begin)
        _write(job.folder / "failed.txt", reason + "\n")
        return reason


def _reason(code: int, output: Path, begin: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    text = output.read_bytes()[begin:].decode(errors="replace")
    lines = [line.strip() for line in text.split("\n")]
    # A tool's own line, which torchrun's report may follow.
    own = [line for line in lines if re.match(r"(train_\w+|search_layers)\.py: ", line)]
    words = [line for line in lines if re.search(r"\w", line)]
    return (own or words or [f"exit status {code}"])[-1]


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
