"""How runs differ in their settings, and the results over runs that differ only in their seed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from .results import Cell, Figures, find_results, last_evaluation, peak_step
from .runs import RunFolder

ABSENT = "–"
OWN = ("OUTPUT_DIR", "TEST.CACHE_DIR")  # settings that change no result


def compare(
    settings: Sequence[dict[str, str]],
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The keys with different values and each run's value, and the keys with one value."""
    differ: dict[str, list[str]] = {}
    alike: dict[str, str] = {}
    for key in dict.fromkeys(key for values in settings for key in values):
        found = [values.get(key, ABSENT) for values in settings]
        if len(set(found)) == 1:
            alike[key] = found[0]
        else:
            differ[key] = found
    return differ, alike


def other_differences(runs: Sequence[RunFolder]) -> list[str]:
    """The settings in which the runs differ, without those of the layer and the seed."""
    differ, _ = compare([run.config for run in runs if run.config])
    return [key for key in differ if key != "SEED" and not _of_layer(key, runs[0])]


def _of_layer(key: str, run: RunFolder) -> bool:
    """Whether a setting says which layer a run has, or changes no result at all."""
    return key in OWN or key.endswith(".NORM") or run.kind.names_layer(key)


def over_seeds(runs: Sequence[RunFolder]) -> list[list[RunFolder]]:
    """The runs in groups. The runs of a group differ in their seed only."""
    groups: dict[frozenset, list[RunFolder]] = {}
    for run in runs:
        settings = frozenset((k, v) for k, v in run.config.items() if k not in (*OWN, "SEED"))
        groups.setdefault(settings or frozenset([run.index]), []).append(run)
    return list(groups.values())


def seed_figures(groups: Sequence[list[RunFolder]]) -> tuple[list[str], Figures]:
    """The name of each group, and the median and range of its runs' results.

    A result that is reported at its peak is the best of each run. All other results are those of a
    run's last evaluation.
    """
    heads = [group[0] for group in groups]
    differ, _ = compare([head.config for head in heads])
    names = []
    for i, head in enumerate(heads):
        rest = [
            f"{key} {values[i]}"
            for key, values in differ.items()
            if key != "SEED" and not _of_layer(key, head)
        ]
        names.append(", ".join([head.norm or head.name, *rest]))
    results = find_results([run for group in groups for run in group])
    figures = Figures([Cell("runs"), *(Cell(r.label, r.remark) for r in results)])
    for i, group in enumerate(groups):
        figures.rows[i] = [Cell(str(len(group)))]
        for result in results:
            values = []
            for run in group:
                step = peak_step(run, result) if result.peak else last_evaluation(run)
                found = run.finite(result.key)
                if step in found:
                    values.append(found[step])
            text = result.format(median(values) if values else None)
            remarks = []
            if len(values) > 1:
                remarks.append(f"{result.format(min(values))} to {result.format(max(values))}")
            if len(values) < len(group):
                remarks.append(f"{len(values)} of {len(group)} runs")
            figures.rows[i].append(Cell(text, ", ".join(remarks)))
    return names, figures
