"""Run an experiment: tune the learning rates, run the seeds, compare the norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

from evonorm import slug
from evonorm_runs.errors import UserError, one_line
from evonorm_runs.grid import Job, failure, finished

from .experiment import Experiment
from .settling import average, changes, order
from .significance import difference, judge, summarise

TUNING_SEED = 1000  # not one of those that are reported
MOST_RATES = 9  # which a grid of learning rates is widened to


def reproduce(
    experiment: Experiment,
    norms: Sequence[str],
    seeds: int,
    out: Path,
    run: Callable[[list[Job]], None],
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the unfinished runs below `out`. Returns the rows and the comparisons between them.

    Args:
        overrides: KEY VALUE ... of all runs.

    Raises:
        UserError: as :func:`run_jobs`; or a run for tuning is unfinished.
    """
    experiment.prepare()
    tuned = _tune(experiment, norms, out, run, overrides)
    factor = {norm: _best_factor(experiment, norm, tuned) for norm in norms}
    jobs = seed_jobs(experiment, norms, seeds, out, overrides, factor)
    run(list(jobs.values()))
    rows = [
        _row(experiment, norm, condition, [jobs[norm, condition, seed] for seed in range(seeds)])
        | {"learning rate": f"{factor[norm]:g} x"}
        | {"tuning": {f"{f:g} x": value for (n, f), value in tuned.items() if n == norm}}
        for norm in norms
        for condition in experiment.conditions
    ]
    comparisons, settling = _comparisons(experiment, rows), _settling(experiment, rows)
    return {"rows": rows, "comparisons": comparisons, "settling": settling}


def _tune(
    experiment: Experiment,
    norms: Sequence[str],
    out: Path,
    run: Callable[[list[Job]], None],
    overrides: Sequence[str],
) -> dict[tuple[str, float], float | None]:
    """The first metric of each run to choose the learning rate by, None if it failed.

    They are by norm and factor. Where the first or the last factor is the best, one more follows.
    """
    tuned: dict[tuple[str, float], float | None] = {}
    jobs = tuning_jobs(experiment, norms, out, overrides)
    while jobs:
        run(list(jobs.values()))
        for job in jobs.values():
            if not finished(job) and failure(job) is None:
                raise UserError(
                    f"{job.folder}: not finished, so there is no learning rate to choose yet"
                )
        tuned |= {key: _objective(experiment, job) for key, job in jobs.items()}
        further = {norm: _beyond(experiment, norm, tuned) for norm in norms if experiment.widen}
        jobs = {
            (norm, factor): _job(experiment, out / "tuning", overrides, norm, factor)
            for norm, factor in further.items()
            if factor
        }
    return tuned


def _beyond(
    experiment: Experiment, norm: str, tuned: dict[tuple[str, float], float | None]
) -> float | None:
    """The factor to try next: beyond the best one, if that is the first or the last."""
    factors = sorted(f for n, f in tuned if n == norm)
    best = _best_factor(experiment, norm, tuned)
    if 1 < len(factors) < MOST_RATES and best in (factors[0], factors[-1]):
        return best * best / factors[1 if best == factors[0] else -2]
    return None


def tuning_jobs(
    experiment: Experiment, norms: Sequence[str], out: Path, overrides: Sequence[str]
) -> dict[tuple[str, float], Job]:
    """The runs to choose the learning rate by, by norm and factor; none for a single factor.

    More may follow, if the grid of factors is widened.
    """
    return {
        (norm, factor): _job(experiment, out / "tuning", overrides, norm, factor)
        for norm in norms
        for factor in experiment.factors
        if len(experiment.factors) > 1
    }


def seed_jobs(
    experiment: Experiment,
    norms: Sequence[str],
    seeds: int,
    out: Path,
    overrides: Sequence[str],
    factor: dict[str, float],
) -> dict[tuple[str, Any, int], Job]:
    """The table's runs, by norm, condition and seed.

    Args:
        factor: of the learning rate, by norm; the experiment's only one, or 1, if it is not there.
    """
    usual = experiment.factors[0] if len(experiment.factors) == 1 else 1.0
    return {
        (norm, condition, seed): _job(
            experiment, out / "runs", overrides, norm, factor.get(norm, usual), condition, seed
        )
        for norm in norms
        for condition in experiment.conditions
        for seed in range(seeds)
    }


def _job(
    experiment: Experiment,
    folder: Path,
    overrides: Sequence[str],
    norm: str,
    factor: float,
    condition: Any = None,
    seed: int | None = None,
) -> Job:
    """A run of the grid. Without a seed it is a run for tuning the learning rate."""
    name = [slug(norm), f"lr{factor:g}"]
    if seed is None:
        condition = experiment.conditions[0]
        rest = [*experiment.held_out, "SEED", str(TUNING_SEED)]
    else:
        if experiment.condition:
            name.append(f"{condition}")
        name.append(f"seed{seed}")
        rest = ["SEED", str(seed)]
    pairs = [*experiment.settings(norm, factor, condition), *rest, *overrides]
    settings = dict(zip(pairs[::2], pairs[1::2]))  # a later value replaces an earlier one
    flat = tuple(x for pair in settings.items() for x in pair)
    return Job(folder / "_".join(name), experiment.tool, experiment.config, flat)


def _read(experiment: Experiment, job: Job) -> dict[str, float] | str:
    """The metrics of a run, or why there are none."""
    if not finished(job):
        return failure(job) or "interrupted"
    try:
        return experiment.read(job.folder)
    except (OSError, UserError) as error:
        return one_line(error)


def _objective(experiment: Experiment, job: Job) -> float | None:
    """The first metric of a run; None if it failed."""
    values = _read(experiment, job)
    value = math.nan if isinstance(values, str) else values[experiment.metrics[0].key]
    return value if math.isfinite(value) else None


def _best_factor(
    experiment: Experiment, norm: str, tuned: dict[tuple[str, float], float | None]
) -> float:
    """The best factor. If several are equal, or all failed, it is the one nearest to 1."""
    sign = 1 if experiment.metrics[0].higher else -1
    found = {f: value for (n, f), value in tuned.items() if n == norm}
    found = found or dict.fromkeys(experiment.factors)
    values = {f: -math.inf if x is None else sign * x for f, x in found.items()}
    return max(values, key=lambda f: (values[f], -abs(math.log(f))))


def _row(experiment: Experiment, norm: str, condition: Any, jobs: list[Job]) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": norm}
    if experiment.condition:
        row[experiment.condition] = condition
    found = {seed: _read(experiment, job) for seed, job in enumerate(jobs)}
    read = {seed: values for seed, values in found.items() if not isinstance(values, str)}
    row["seeds"] = list(read)
    row["failed"] = {str(seed): why for seed, why in found.items() if isinstance(why, str)}
    for metric in experiment.metrics:
        row[metric.key] = summarise([values[metric.key] for values in read.values()])
    history = average([experiment.history(jobs[seed].folder) for seed in read])
    row["history"] = list(history.items())
    row["paper"] = experiment.paper.get((norm, condition), {})
    row["described"] = experiment.describe(norm, condition)
    return row


def _comparisons(experiment: Experiment, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each layer with each baseline, at the last condition."""
    last = [r for r in rows if r.get(experiment.condition) == experiment.conditions[-1]]
    bases = [row for row in last if row["layer"] in experiment.baselines]
    pairs = [(row, base) for base in bases for row in last if row not in bases]
    pairs += [(row, base) for i, base in enumerate(bases) for row in bases[i + 1 :]]
    found = []
    for row, base in pairs:
        for metric in experiment.metrics:
            values, others = ((r[metric.key] or {}).get("values", []) for r in (row, base))
            tested = difference(values, others) if metric.compared else None
            if tested:
                names = {"layer": row["layer"], "than": base["layer"], "metric": metric.title}
                found.append({**names, **tested, "higher": metric.higher})
    return judge(found)


def _settling(experiment: Experiment, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each condition, which layers change places in the last third of the training."""
    found = []
    for condition in experiment.conditions:
        own = [row for row in rows if row.get(experiment.condition) == condition and row["seeds"]]
        histories = {row["layer"]: {share: value for share, value in row["history"]} for row in own}
        orders = order(histories, experiment.metrics[0].higher)
        found.append({"at": condition, "orders": list(orders.items()), "changes": changes(orders)})
    return found
