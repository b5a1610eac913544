"""Tuning, seeds and comparisons of a table, on runs whose scores are known."""

from __future__ import annotations

import fcntl
import json
import math

import pytest

from evonorm_repro.experiment import Experiment, Metric
from evonorm_repro.present import as_table, as_text
from evonorm_repro.reproduction import TUNING_SEED, reproduce
from evonorm_repro.significance import summarise
from evonorm_runs.errors import UserError
from evonorm_runs.grid import run_jobs


class Scores(Experiment):
    """A's score is best at half the learning rate, B's at twice; C never ends well."""

    title = "Scores"
    config = "none.yaml"
    norms = ("A", "B")
    baselines = ("A",)
    metrics = (Metric("score", "score"),)
    condition, conditions = "size", (8, 2)
    clock = "epoch"
    widen = False

    def __init__(self, tool):
        self.tool = tool
        self.paper = {("A", 8): {"score": "42.0"}}

    def settings(self, norm, factor, condition):
        best = {"A": 0.5, "B": 2.0, "C": 1.0}[norm]
        score = f"{condition} - abs({factor} - {best}) + int(SEED) / 10"
        settings = ["NORM", norm, "SIZE", str(condition)]
        return [*settings, *(["FAIL_UNTIL", "9"] if norm == "C" else []), "SCORE", score]

    def read(self, folder):
        return json.loads((folder / "metrics.json").read_text())


def test_each_norm_is_tuned_alike_and_runs_with_its_best(tool, tmp_path):
    experiment = Scores(tool)
    results = reproduce(experiment, ["A", "B"], 3, tmp_path, run_jobs)
    table = as_table(experiment, results)
    assert table["columns"] == ["layer", "learning rate", "seeds", "8", "2"]
    assert table["rows"] == [
        ["A", "0.5 x", "3", "8.1 ± 0.1", "2.1 ± 0.1"],
        ["  paper", "", "", "42.0", ""],
        ["B", "2 x", "3", "8.1 ± 0.1", "2.1 ± 0.1"],
    ]
    rows = {(row["layer"], row["size"]): row for row in results["rows"]}
    assert list(rows) == [("A", 8), ("A", 2), ("B", 8), ("B", 2)]
    assert rows["A", 8]["learning rate"] == "0.5 x"
    assert rows["B", 2]["learning rate"] == "2 x"
    assert rows["A", 8]["score"]["values"] == pytest.approx([8, 8.1, 8.2])
    score = rows["B", 2]["score"]
    assert [*score["values"], score["mean"], score["spread"]] == pytest.approx(
        [2, 2.1, 2.2, 2.1, 0.1]
    )
    tuning = {"0.5 x": 108 - 1.5, "1 x": 108 - 1.0, "2 x": 108}
    assert rows["B", 8]["tuning"] == pytest.approx(tuning)
    assert TUNING_SEED == 1000
    folders = sorted(path.name for path in (tmp_path / "tuning").iterdir())
    assert folders == [f"{n}_lr{f}" for n in "AB" for f in ("0.5", "1", "2")]
    settings = json.loads((tmp_path / "tuning/A_lr1/job.json").read_text())["settings"]
    assert settings[-2:] == ["SEED", "1000"]
    assert len(list((tmp_path / "runs").iterdir())) == 2 * 2 * 3


def test_a_norm_that_fails_stays_in_the_table(tool, tmp_path):
    experiment = Scores(tool)
    results = reproduce(experiment, ["A", "C"], 2, tmp_path, run_jobs)
    row = results["rows"][2]
    assert row["layer"] == "C"
    assert row["seeds"] == []
    assert row["score"] is None
    assert row["failed"] == dict.fromkeys("01", "tool.py: the loss is nan")
    text = as_text(as_table(experiment, results))
    assert "0, 4 failed" in text
    assert "C at 8, seed 1: tool.py: the loss is nan" in text
    assert "C  0.5 x: failed, 1 x: failed, 2 x: failed" in text


def test_nothing_is_chosen_while_a_run_to_tune_by_goes_on(tool, tmp_path):
    (tmp_path / "tuning/A_lr1").mkdir(parents=True)
    with open(tmp_path / "tuning/A_lr1/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="A_lr1: not finished, so there is no learning rate"):
            reproduce(Scores(tool), ["A"], 1, tmp_path, run_jobs)
    assert not (tmp_path / "runs").exists()
    assert reproduce(Scores(tool), ["A"], 1, tmp_path, run_jobs)["rows"][0]["seeds"] == [0]


def test_a_run_without_figures_does_not_take_the_table_with_it(tool, tmp_path):
    class Broken(Scores):
        factors = (2.0,)

        def read(self, folder):
            if "seed1" in folder.name:
                raise UserError(f"{folder.name}: no score in it")
            return super().read(folder)

    rows = reproduce(Broken(tool), ["A"], 2, tmp_path, run_jobs)["rows"]
    assert rows[0]["seeds"] == [0] and rows[0]["learning rate"] == "2 x"
    assert rows[0]["failed"] == {"1": "A_lr2_8_seed1: no score in it"}


def test_of_equals_the_nearest_to_the_configs_own_is_chosen(tool, tmp_path):
    class Flat(Scores):
        def settings(self, norm, factor, condition):
            return ["NORM", norm, "FACTOR", str(factor)]

    experiment = Flat(tool)
    assert reproduce(experiment, ["A"], 1, tmp_path, run_jobs)["rows"][0]["learning rate"] == "1 x"
    experiment.factors = (0.25, 8.0)
    row = reproduce(experiment, ["A"], 1, tmp_path, run_jobs)["rows"][0]
    assert row["learning rate"] == "0.25 x"


def test_overrides_go_to_every_run(tool, tmp_path):
    experiment = Scores(tool)
    reproduce(experiment, ["A"], 1, tmp_path, run_jobs, ["ALSO", "7"])
    found = [json.loads(file.read_text()) for file in tmp_path.glob("*/*/job.json")]
    settings = [dict(zip(x["settings"][2::2], x["settings"][3::2])) for x in found]
    assert len(settings) == 3 + 2 and all(x["ALSO"] == "7" for x in settings)


@pytest.mark.parametrize(
    "best, factors, chosen",
    [
        (16.0, (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0), "16 x"),
        (0.2, (0.125, 0.25, 0.5, 1.0, 2.0), "0.25 x"),
        (1e9, (0.5, *(2.0**k for k in range(8))), "128 x"),  # there is an end
    ],
)
def test_a_grid_is_widened_until_the_best_is_inside(tool, tmp_path, best, factors, chosen):
    class Far(Scores):
        condition, conditions = None, (None,)
        held_out = ("PART", "val")
        widen = True

        def settings(self, norm, factor, condition):
            return ["NORM", norm, "SCORE", f"-abs({factor} - {best})"]

    experiment = Far(tool)
    results = reproduce(experiment, ["A"], 1, tmp_path, run_jobs)
    (row,) = results["rows"]
    assert row["learning rate"] == chosen
    assert {f"{factor:g} x" for factor in factors} == set(row["tuning"])
    for file in tmp_path.glob("*/*/job.json"):
        assert ("PART" in json.loads(file.read_text())["settings"]) == ("tuning" in str(file))
    text = as_text(as_table(experiment, results))
    assert "with a seed of its own, on images that no reported run is measured on" in text


def test_the_order_over_the_training(tool, tmp_path):
    class Curves(Scores):
        factors = (1.0,)
        scores = {"A": (1.0, 5.0, 9.0), "B": (2.0, 6.0, 8.0), "C": (0.0, 1.0, 2.0)}

        def settings(self, norm, factor, condition):
            return ["NORM", norm, "SIZE", str(condition)]

        def history(self, folder):
            one, two, three = self.scores[folder.name[0]]
            return {0.3: one, 0.7: three if "_8_" in folder.name else two, 1.0: three}

    experiment = Curves(tool)
    results = reproduce(experiment, ["A", "B", "C"], 2, tmp_path, run_jobs)
    lines = as_table(experiment, results)["notes"][-2:]
    assert lines == [
        "In the last third of the training, at 8 size, no two layers change places: the order is "
        "settled.",
        "In the last third of the training, at 2 size, these change places, so the order is not "
        "settled: A and B.",
    ]


def test_one_seed_claims_nothing(tool, tmp_path):
    experiment = Scores(tool)
    experiment.factors = (1.0,)
    results = reproduce(experiment, ["A", "B"], 1, tmp_path, run_jobs)
    assert not (tmp_path / "tuning").exists()
    assert results["rows"][0]["learning rate"] == "1 x"
    assert results["rows"][0]["score"]["spread"] is None
    assert results["comparisons"] == []
    assert as_table(experiment, results)["rows"][0] == ["A", "1 x", "1", "7.5", "1.5"]


def welch(a, b):
    """The p-value from the t-distribution's integral, by the trapezoidal rule."""
    (ma, sa), (mb, sb) = ((sum(x) / 3, summarise(x)["spread"] ** 2 / 3) for x in (a, b))
    t = abs(ma - mb) / math.sqrt(sa + sb)
    df = (sa + sb) ** 2 / (sa**2 / 2 + sb**2 / 2)
    c = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    step = t / 20_000
    heights = [c * (1 + (i * step) ** 2 / df) ** (-(df + 1) / 2) for i in range(20_001)]
    return 1 - 2 * step * (sum(heights) - (heights[0] + heights[-1]) / 2)


@pytest.mark.parametrize(
    ("values", "higher", "verdict"),
    [
        ([5.0, 5.1, 5.3], True, "better"),
        ([5.0, 5.1, 5.3], False, "worse"),
        ([0.9, 1.4, 0.3], True, "not told apart"),
    ],
)
def test_a_difference_is_claimed_only_beyond_the_spread(tool, tmp_path, values, higher, verdict):
    base = [1.0, 1.2, 0.9]

    class Known(Scores):
        condition, conditions = None, (None,)
        metrics = (Metric("score", "score", higher=higher),)
        factors = (1.0,)

        def settings(self, norm, factor, condition):
            return ["NORM", norm, "SCORE", f"{base if norm == 'A' else values}[int(SEED)]"]

    results = reproduce(Known(tool), ["A", "B"], 3, tmp_path, run_jobs)
    (found,) = results["comparisons"]
    assert found["metric"] == "score"
    assert (found["layer"], found["than"], found["verdict"]) == ("B", "A", verdict)
    assert found["p"] == found["p_holm"] == pytest.approx(welch(values, base), abs=1e-6)
