"""The page: all that the report says of the runs, as one HTML file."""

from __future__ import annotations

import base64
import hashlib
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import atomic_write

from . import recorded, results
from .compare import compare, over_seeds
from .figures import style
from .images import Album
from .kinds import OTHER, RUN_KINDS
from .mathematics import mathml
from .parts import Part, make_part
from .reading import read_runs
from .runs import RunFolder

HERE = Path(__file__).parent
TICKED = 12  # runs that are shown at first; the reader ticks the others
PACKAGES = ("torch", "plotly", "Jinja2", "pillow")


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write a report over runs to the file `out`.

    The file needs no other file and no network. A file that is there already is replaced once the
    new one is complete.

    Args:
        folders: the folders of runs, or folders that hold such folders at any depth.

    Raises:
        UserError: there is no run in a folder; `out` can't be written; a file can't be read.
    """
    folders, out = [Path(folder) for folder in folders], Path(out)
    with user_errors(OSError):
        if out.is_dir():
            raise UserError(f"{out} is a folder: name a file to write the report to")
        if not out.parent.is_dir():
            raise UserError(f"{out}: there is no folder {out.parent}")
        html = render(folders)
        with atomic_write(out) as file:
            file.write(html.encode(errors="replace"))  # the name of a file may not be Unicode


def render(folders: Sequence[Path]) -> str:
    """The page as text. It raises the errors of :func:`read_runs`."""
    runs = read_runs(folders)
    # The table of a reproduction lies two folders above its runs.
    parents = (folder for run in runs for folder in list(run.folder.parents)[:2])
    above = dict.fromkeys([*folders, *parents])
    tables, notes = recorded.tables(above)
    album = Album()
    parts = [
        make_part(kind, chosen, album, len(runs))
        for kind in (*RUN_KINDS, OTHER)
        if (chosen := [run for run in runs if run.kind is kind])
    ]
    placed = [chart for part in parts for chart in part.all_charts()]
    for i, chart in enumerate(placed):
        chart.id = f"chart-{i}"
    environments = {run: found for run in runs if (found := recorded.environment(run.folder))}
    differ, alike = compare(list(environments.values()))
    scripts = {"plotly": get_plotlyjs(), "script": (HERE / "page.js").read_text()}
    template = _templates().get_template("page.html")
    return template.render(
        runs=runs,
        parts=parts,
        formulas=_formulas(runs),
        tables=tables,
        notes=notes,
        summary=_summary(runs, parts),
        ticked=_ticked(parts),
        speed=results.speed(runs),
        environments=(list(environments), differ, alike),
        writer={
            "Python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            "machine": f"{platform.system()} {platform.machine()}",
            "written": _date(datetime.now(timezone.utc).timestamp()),
        },
        charts={chart.id: chart.figure for chart in placed},
        css=Markup((HERE / "style.css").read_text()),
        policy=" ".join(f"'sha256-{_digest(text)}'" for text in scripts.values()),
        **{name: Markup(text) for name, text in scripts.items()},
    )


def _ticked(parts: list[Part]) -> set[int]:
    """The runs that are shown at first.

    These are all runs if there are few. If there are many, they are the runs that failed and, of
    runs that differ in their seed only, the first one.
    """
    runs = [run for part in parts for run in part.runs]
    if len(runs) <= TICKED:
        return {run.index for run in runs}
    each = max(1, TICKED // len(parts))
    chosen = [run for run in runs if run.failed is not None]
    for part in parts:
        groups = over_seeds(part.runs)
        # A reproduction reports several seeds, and tunes with one.
        most = [group for group in groups if len(group) > 1] or groups
        chosen += [group[0] for group in most[:each]]
    return {run.index for run in chosen}


def _summary(runs: list[RunFolder], parts: list[Part]) -> dict[str, Any]:
    states = [run.state.split()[0] for run in runs]
    counts = {word: states.count(word) for word in ("finished", "failed") if word in states}
    rest = len(runs) - sum(counts.values())
    return {
        "title": f"{len(runs)} runs" if len(runs) > 1 else f"Run {runs[0].name}",
        "kinds": [(part.id, part.title, len(part.runs)) for part in parts],
        "states": [
            *((n, word) for word, n in counts.items()),
            *([(rest, "unfinished")] * bool(rest)),
        ],
        "written": _date(max(run.written for run in runs)),
        "single": all(part.seeds is None for part in parts) and len(runs) > 1,
    }


def _formulas(runs: list[RunFolder]) -> dict[str, Markup]:
    """The formulas of the runs' layers with γ and β, as MathML by the layers' names."""
    found = {norm: mathml(norm) for norm in dict.fromkeys(run.norm for run in runs)}
    return {norm: formula for norm, formula in found.items() if formula is not None}


def _date(seconds: float) -> str:
    time = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{time.day} {time:%b %Y, %H:%M} UTC"


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    found.globals |= {"style": style, "date": _date}
    return found
