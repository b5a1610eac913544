"""A table's results as strings: for the terminal and, as table.json, for the report."""

from __future__ import annotations

from statistics import median
from typing import Any

from tabulate import tabulate

from .experiment import Experiment, Metric


def as_table(experiment: Experiment, results: dict[str, Any]) -> dict[str, Any]:
    """{"title": ..., "columns": [...], "rows": [[...]], "notes": [...]}, all of them strings.

    Each norm has a row, and below it a row with the paper's figures if there are any. If something
    is varied in addition to the norm, each of its values has a column, as in the paper's table 3,
    for each metric that the norms are compared by.
    """
    described = [] if experiment.condition else list(results["rows"][0]["described"])
    metrics = experiment.metrics
    columns = [metric.title for metric in metrics] + described
    if experiment.condition:
        metrics = tuple(metric for metric in metrics if metric.compared)
        pairs = [(metric.title, c) for c in experiment.conditions for metric in metrics]
        columns = [f"{title} at {c}" if len(metrics) > 1 else str(c) for title, c in pairs]
    rows = []
    for norm in dict.fromkeys(row["layer"] for row in results["rows"]):
        own = [row for row in results["rows"] if row["layer"] == norm]
        cells = [_cell(experiment, row, metric) for row in own for metric in metrics]
        cells += [f"{own[0]['described'][title]:.2f}" for title in described]
        rows.append([norm, own[0]["learning rate"], _seeds(own), *cells])
        keys = [metric.key for metric in metrics] + described
        paper = [row["paper"].get(key, "") for row in own for key in keys]
        if any(paper):
            rows.append(["  paper", "", "", *paper])
    columns = ["layer", "learning rate", "seeds", *columns]
    notes = _notes(experiment, results)
    return {"title": experiment.title, "columns": columns, "rows": rows, "notes": notes}


def as_text(table: dict[str, Any], style: str = "simple") -> str:
    """A table as text, for a terminal or in another of tabulate's styles."""
    body = tabulate(
        table["rows"], table["columns"], style, disable_numparse=True, preserve_whitespace=True
    )
    return "\n".join([table["title"], "", body, "", *table["notes"]])


def _seeds(rows: list[dict[str, Any]]) -> str:
    counts = sorted({len(row["seeds"]) for row in rows})
    failed = sum(len(row["failed"]) for row in rows)
    return "-".join(map(str, counts)) + (f", {failed} failed" if failed else "")


def _cell(experiment: Experiment, row: dict[str, Any], metric: Metric) -> str:
    """Mean ± spread, or the value of a single seed; with (median/best) if the paper has them."""
    found, digits = row[metric.key], metric.digits
    if found is None:
        return "-"
    text = f"{found['mean']:.{digits}f}"
    if found["spread"] is None:
        return text
    text += f" ± {found['spread']:.{digits}f}"
    if experiment.median_and_best:
        best = (max if metric.higher else min)(found["values"])
        text += f" ({median(found['values']):.{digits}f}/{best:.{digits}f})"
    return text


def _notes(experiment: Experiment, results: dict[str, Any]) -> list[str]:
    rows = results["rows"]
    notes = [*experiment.notes, "Mean ± standard deviation over seeds"]
    notes[-1] += " (median/best)." if experiment.median_and_best else "."
    for row in rows:
        where = f" at {row[experiment.condition]}" if experiment.condition else ""
        notes += [f"{row['layer']}{where}, seed {k}: {why}" for k, why in row["failed"].items()]
    for row in rows if experiment.condition else ():
        figures = ", ".join(f"{title} {value:.2f}" for title, value in row["described"].items())
        notes += [f"{row['layer']} at {row[experiment.condition]}: {figures}"] * bool(figures)
    tuned = {row["layer"]: row["tuning"] for row in rows if row["tuning"]}
    if tuned:
        metric = experiment.metrics[0]
        notes.append(
            f"Learning rates are multiples of the config's, chosen by {metric.title} of one "
            "run each with a seed of its own, on "
            f"{'images' if experiment.held_out else 'the images'} that "
            f"{'no reported run is measured on' if experiment.held_out else 'are reported on too'}:"
        )
    for layer, values in tuned.items():
        cells = (
            f"{factor}: {'failed' if value is None else format(value, f'.{metric.digits}f')}"
            for factor, value in values.items()
        )
        notes.append(f"{layer}  {', '.join(cells)}")
    if results["comparisons"]:
        where = f" at {experiment.conditions[-1]}" if experiment.condition else ""
        notes.append(
            f"By Welch's t-test over the seeds{where}, corrected for the number of tests by Holm's "
            "method; in brackets the interval of 95 %:"
        )
    sentences = [_sentence(comparison) for comparison in results["comparisons"]]
    return [*notes, *sentences, *_settling(experiment, results.get("settling", []))]


def _settling(experiment: Experiment, found: list[dict[str, Any]]) -> list[str]:
    """For each condition, whether the order of the layers still changed at the end."""
    lines = []
    for one in found:
        where = f"at {one['at']} {experiment.condition}, " if experiment.condition else ""
        lines.append(f"In the last third of the training, {where}{_changes(one['changes'])}.")
    return lines


def _changes(pairs: list[tuple[str, str]] | None) -> str:
    if pairs is None:
        return "there are fewer than two evaluations, so nobody knows whether the order is settled"
    if not pairs:
        return "no two layers change places: the order is settled"
    return (
        f"these change places, so the order is not settled: {'; '.join(map(' and '.join, pairs))}"
    )


def _sentence(c: dict[str, Any]) -> str:
    low, high = c["interval"]
    figures = (
        f"{c['metric']} {c['difference']:+.2f} [{low:+.2f}, {high:+.2f}], p = {c['p_holm']:.2g}"
    )
    if c["verdict"] == "not told apart":
        return f"{c['layer']} and {c['than']} are not told apart ({figures})"
    return f"{c['layer']} is {c['verdict']} than {c['than']} ({figures})"
