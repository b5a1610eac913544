"""Table 5 over run folders."""

from __future__ import annotations

import json

import pytest

from evonorm_gan.config import load_config
from evonorm_gan.evaluation.metrics import metric_key
from evonorm_repro.paper import TABLE_5
from evonorm_repro.table5 import format_table, read_run, table

IMAGENET = {"MODEL.RESOLUTION": 128, "MODEL.NUM_CLASSES": 1000}
DIGITS = {"MODEL.RESOLUTION": 32, "MODEL.NUM_CLASSES": 10, "TEST.EXTRACTOR": "digits"}


@pytest.fixture
def run(tmp_path):
    """run(norm, seed, evaluations (IS, FID) ...): a run's folder."""

    def make(norm, seed, *evaluations, **settings):
        settings = {"MODEL.NORM": norm, "SEED": seed, "DEVICE": "cpu", **(settings or IMAGENET)}
        empty = tmp_path / "empty.yaml"
        empty.write_text("{}")
        cfg = load_config(str(empty), [str(x) for pair in settings.items() for x in pair])
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        # As if trained on a GPU, which the table does not need.
        (folder / "config.yaml").write_text(cfg.dump().replace("DEVICE: cpu", "DEVICE: cuda"))
        lines = [{"step": 10, "loss_d": 1.0}]
        names = [metric_key(name, cfg.TEST.EXTRACTOR) for name in ("IS", "FID")]
        lines += [{"step": 20, **dict(zip(names, pair))} for pair in evaluations]
        text = "\n".join(map(json.dumps, lines)) + '\n{"step": 30, "FI'  # killed there
        (folder / "metrics.json").write_text(text)
        return folder

    return make


def test_each_metric_is_taken_at_its_own_peak(run):
    found = read_run(run("EvoNormS0", 4, (50.0, 30.0), (90.0, 12.0), (95.0, 14.0), (9.0, 80.0)))
    assert (found.IS, found.FID) == (95.0, 12.0)
    assert (found.layer, found.seed) == ("EvoNormS0", 4)


def test_lines_that_are_no_evaluation_are_passed_over(run):
    folder = run("EvoNormS0", 4, (50.0, 30.0))
    odd = ["[1]", "3", '"x"', '{"IS": "a", "FID": 3}', '{"IS": null, "FID": 1}', '{"IS": 99}']
    with open(folder / "metrics.json", "a") as file:
        file.write("\n" + "\n".join(odd))
    found = read_run(folder)
    assert (found.IS, found.FID) == (50.0, 30.0)


def test_median_and_best_over_seeds_beside_the_papers(run):
    folders = [
        run("EvoNormS0", 0, (100.0, 7.5)),
        run("EvoNormS0", 1, (104.0, 6.5)),
        run("EvoNormS0", 2, (120.0, 9.0)),
        run("BN-ReLU", 0, (118.0, 8.0)),
    ]
    rows = {row["layer"]: row for row in table(folders)}
    assert list(rows) == list(TABLE_5)
    assert rows["EvoNormS0"]["seeds"] == [0, 1, 2]
    assert rows["EvoNormS0"]["IS"] == {"median": 104.0, "best": 120.0}
    assert rows["EvoNormS0"]["FID"] == {"median": 7.5, "best": 6.5}
    assert rows["LN-ReLU"]["IS"] is None

    text = format_table(table(folders))
    header, rule, *lines = text.splitlines()
    assert "IS (median/best)" in header and "paper FID (median/best)" in header
    # As the paper prints it: batch statistics apart, one number for one seed.
    assert lines[0].split() == ["BN-ReLU", "1", "118.00", "118.77/124.01", "8.00", "7.85/7.29"]
    assert lines[1].startswith("EvoNormB0") and lines[2] == rule
    assert lines[3].split() == ["GN-ReLU", "(16", "groups)", "0", "-", "99.09", "-", "8.14"]
    assert lines[6].split() == [
        *("EvoNormS0", "3", "104.00/120.00", "104.64/113.96", "7.50/6.50", "6.86/6.26")
    ]


def test_the_papers_numbers_fit_what_it_says_of_them():
    median = {x: [float(cell.split("/")[0]) for cell in pair] for x, pair in TABLE_5.items()}
    score, fid = ({x: pair[i] for x, pair in median.items()} for i in (0, 1))
    assert max(score, key=score.get) == "BN-ReLU"  # "albeit worse IS"
    better = {x for x in fid if fid[x] < fid["BN-ReLU"]}
    assert better == {"EvoNormB0", "EvoNormS0"}  # "improved FIDs over the BN-ReLU baseline"
    per_sample = ["GN-ReLU (16 groups)", "LN-ReLU", "PixelNorm-ReLU", "EvoNormS0"]
    assert max(per_sample, key=score.get) == min(per_sample, key=fid.get) == "EvoNormS0"
    for name, pair in TABLE_5.items():  # three seeds for the first two and the last
        assert [cell.count("/") for cell in pair] == [name[:2] in ("BN", "Ev")] * 2


def test_digits_stand_alone_and_are_called_so(run):
    text = format_table(table([run("GN-ReLU", 0, (8.0, 3.0), **DIGITS)]))
    assert "IS-digits (median/best; not comparable with Inception)" in text
    assert "FID-digits (median/best; not comparable with Inception)" in text
    assert "paper" not in text.replace("paper's", "") and "118.77" not in text
    assert "GN-ReLU (16 groups)" in text


@pytest.mark.parametrize(
    "other, reason",
    [
        ({"TEST.NUM_SAMPLES": 500}, "TEST.NUM_SAMPLES is 50000 and 500"),
        ({"TEST.TRUNCATION": 0.5}, "TEST.TRUNCATION is None and 0.5"),
        ({"MODEL.RESOLUTION": 64}, "MODEL.RESOLUTION is 32 and 64"),
        ({"SOLVER.MAX_ITER": 5}, "SOLVER.MAX_ITER is 250000 and 5"),
    ],
)
def test_what_cannot_be_compared_is_refused(run, other, reason):
    folders = (
        run("BN-ReLU", 0, (1.0, 2.0), **DIGITS),
        run("LN-ReLU", 0, (1.0, 2.0), **DIGITS | other),
    )
    with pytest.raises(ValueError, match=reason) as caught:
        table(folders)
    assert all(str(folder) in str(caught.value) for folder in folders)


def test_runs_that_are_none_or_come_twice(run, tmp_path):
    with pytest.raises(ValueError, match="no config.yaml"):
        table([tmp_path])
    with pytest.raises(ValueError, match="no evaluation"):
        table([run("BN-ReLU", 0)])
    with pytest.raises(ValueError, match="no evaluation"):
        table([run("BN-ReLU", 0, (float("nan"), 3.0))])
    with pytest.raises(ValueError, match="both of BN-ReLU with SEED 3"):
        table([run("BN-ReLU", 3, (1.0, 2.0)), run("BN-ReLU", 3, (1.0, 2.0))])
