"""What a page says of runs against what was written into their folders."""

from __future__ import annotations

import json
import math
from statistics import median

import pytest
import yaml

from evonorm_runs.grid import Job, run_job

REMARK = "(not comparable with Inception)"


def test_results_of_gans_at_their_peak_and_last(tmp_path, report, gan_run, metrics):
    a = [(10, metrics(40.0, 2.5)), (20, metrics(21.25, 3.75)), (30, metrics(30.5, 3.25))]
    b = [(10, metrics(35.0, 3.0)), (20, metrics(25.0, math.nan)), (30, metrics(24.5, 4.5))]
    runs = [gan_run(tmp_path / name, lines) for name, lines in (("a", a), ("b", b))]
    head, first, second = report(*runs).table("BigGAN-deep: results")
    titles = ["FID-digits, peak", "IS-digits, peak", "FID-digits, last", "IS-digits, last"]
    assert head == ["run", "evaluated at", *(f"{t}{REMARK}" for t in titles)]
    assert first == ["a", "step 30", "21.25 beststep 20", "3.75step 20", "30.50", "3.25"]
    assert second == ["b", "step 30", "24.50step 30", "4.50 beststep 30", "24.50 best", "4.50 best"]


def test_results_of_detectors_are_those_of_the_last_evaluation(tmp_path, report, detection_run):
    def aps(value):
        return {f"{t}/{ap}": value for t in ("bbox", "segm") for ap in ("AP", "AP50", "AP75")}

    a = [(19, aps(50.0)), (39, aps(40.04) | {"bbox/APl": math.nan})]
    b = [(19, aps(45.0)), (39, {"bbox/AP": math.nan, "segm/AP75": 41.0})]
    runs = [detection_run(tmp_path / name, lines) for name, lines in (("a", a), ("b", b))]
    head, first, second = report(*runs).table("Detection: results")
    titles = [f"{what} {ap} (%)" for what in ("box", "mask") for ap in ("AP", "AP50", "AP75")]
    assert head == ["run", "evaluated at", *titles]
    # One finite value alone is not the best.
    assert first[2:] == ["40.0"] * 6
    assert second[2:] == ["not finite", "–", "–", "–", "–", "41.0 best"]


def test_several_test_sets_are_told_apart(tmp_path, report, detection_run):
    lines = [(19, {"digits_val/bbox/AP": 10.0, "digits_train/bbox/AP": 20.0})]
    head, row = report(detection_run(tmp_path / "a", lines)).table("Detection: results")
    assert dict(zip(head, row)) | {"run": ""} == {
        "run": "",
        "evaluated at": "iteration 19",
        "box AP, digits_val (%)": "10.0",
        "box AP, digits_train (%)": "20.0",
    }


def test_accuracy_of_classifiers(tmp_path, report, classifier_run):
    lines = [
        (5, {"loss": 2.0, "lr": 0.1, "seconds": 0.25}),
        (5, {"epoch": 1, "train_accuracy": 55.5, "accuracy": 61.25, "val_loss": 1.5}),
    ]
    page = report(classifier_run(tmp_path / "a", lines, "SOLVER.EPOCHS", 1))
    head, row = page.table("Classification: results")
    assert head[2:] == ["accuracy (%)", "accuracy in training (%)", "validation loss"]
    assert row == ["a", "step 5", "61.25", "55.50", "1.5000"]
    assert "finished at step 5" in page.table("Runs")[1]


def test_mistakes_of_classifiers(tmp_path, report, classifier_run):
    names = ["cat", "<b>dog</b>", "hen"]
    counts = [[0, 0, 5], [0, 1, 3], [1, 1, 4], [1, 2, 1]]  # no image of a hen
    text = json.dumps({"classes": names, "counts": counts, "wrong": []})
    many = json.dumps({"classes": [str(i) for i in range(41)], "counts": [[40, 0, 7]]})
    a, b = (
        classifier_run(tmp_path / name, [(1, {"accuracy": 9.0})], files={"confusion.json": file})
        for name, file in (("a", text), ("b", many))
    )
    page = report(a, b)
    (chart,) = (x for title, x in page.charts().items() if "answers to the images" in title)
    (matrix,) = chart["data"]
    assert matrix["z"] == [[62.5, 37.5, 0], [0, 80, 20], [0, 0, 0]]
    assert matrix["customdata"] == [[5, 3, 0], [0, 4, 1], [0, 0, 0]]
    assert matrix["y"] == matrix["x"] == ["0 cat", "1 &lt;b&gt;dog&lt;/b&gt;", "2 hen"]
    assert "9 of 13 images are right" in page.said
    rows = page.table("Most frequent mistakes")[1:]
    assert rows[0] == ["a", "cat", "<b>dog</b>", "3 of 8"]
    assert rows[1:] == [["a", "<b>dog</b>", "hen", "1 of 5"], ["b", "40", "0", "7 of 7"]]


def test_a_stand_ins_remark_is_wherever_its_metric_is(tmp_path, report, gan_run, metrics):
    lines = [(s, metrics(50.0 - s, 1.0 + s, KID=0.1, precision=0.2, recall=s)) for s in (1, 2, 3)]
    folder = gan_run(tmp_path / "a", lines)
    rows = [{"truncation": t, **metrics(9.0, 3.0)} for t in (0.5, None)]
    (folder / "curve.json").write_text(json.dumps({"curve": rows}))
    page = report(folder)
    seen = 0
    for element in page.root.iter():
        own = "".join(element.itertext())
        if element.tag in ("th", "figcaption", "li", "p", "h3", "dt") and "-digits" in own:
            assert REMARK in " ".join(own.split()), own
            seen += 1
    for title, figure in page.charts().items():
        for axis in ("xaxis", "yaxis"):
            text = figure["layout"][axis]["title"]["text"]
            if "-digits" in text:
                assert f"<br>{REMARK}" in text and REMARK in title
                seen += 1
    assert seen > 15


def test_precision_and_recall_stand_beside_their_numbers_of_images(
    tmp_path, report, gan_run, metrics
):
    counts = {"precision_recall_images": 2000, "precision_recall_real_images": 1440}
    values = {**metrics(9.0, 3.0, precision=0.25, recall=0.5), **counts}
    page = report(*(gan_run(tmp_path / name, [(4, values)]) for name in "ab"))
    head, *rows = page.table("BigGAN-deep: results")
    assert head[-2:] == ["images for precision and recall", "real images for them"]
    assert all(row[-2:] == ["2000", "1440"] for row in rows)  # neither is the best
    assert not any("images for" in title for title in page.charts())


def test_curves_are_the_logged_values(tmp_path, report, gan_run):
    # What is not finite has no place in a curve; of a step that came twice the later one counts.
    logged = [(1, 2.0), (2, math.nan), (3, 1.23456789), (4, math.inf), (3, 1.5), (5, -0.25)]
    lines = [(step, {"loss_d": value, "lr_d": 5e-4}) for step, value in logged]
    a = gan_run(tmp_path / "a", lines)
    b = gan_run(tmp_path / "b", [(s, {"loss_d": 1 / 3}) for s in (1, 2)])
    figure = report(a, b).charts()["discriminator's loss"]
    one, other = figure["data"]
    assert (one["x"], one["y"]) == ([1, 3, 5], [2.0, 1.5, -0.25])
    assert (other["x"], other["y"]) == ([1, 2], [0.333333, 0.333333])
    assert [trace["meta"] for trace in figure["data"]] == [0, 1]
    assert figure["layout"]["xaxis"]["title"]["text"] == "step"
    assert figure["layout"]["yaxis"]["title"]["text"] == "discriminator's loss"


def test_long_curves_are_thinned_from_end_to_end(tmp_path, report, classifier_run):
    lines = [(step, {"loss": float(step)}) for step in range(1, 3003)]
    (trace,) = report(classifier_run(tmp_path / "a", lines)).charts()["loss"]["data"]
    assert trace["x"] == trace["y"] and (trace["x"][0], trace["x"][-1]) == (1, 3002)
    assert 500 < len(trace["x"]) <= 1001
    assert max(b - a for a, b in zip(trace["x"], trace["x"][1:])) <= 4


def test_is_against_fid_over_training_and_truncation(tmp_path, report, gan_run, metrics):
    folder = gan_run(tmp_path / "a", [(1, metrics(9.0, 2.0)), (2, metrics(7.0, 3.0))])
    rows = [{"truncation": t, **metrics(fid, 4.0)} for t, fid in ((0.5, 5.0), (None, 6.0))]
    (folder / "curve.json").write_text(json.dumps({"checkpoint": "x", "curve": rows}))
    charts = report(folder).charts()
    (over_training,) = charts[f"IS-digits against FID-digits, over the training {REMARK}"]["data"]
    assert (over_training["x"], over_training["y"]) == ([9, 7], [2, 3])
    assert over_training["text"] == ["step 1", "step 2"]
    (curve,) = charts[f"IS-digits against FID-digits, over the truncation {REMARK}"]["data"]
    assert (curve["x"], curve["text"]) == ([5, 6], ["truncation 0.5", "no truncation"])


def test_ap_by_class(tmp_path, report, detection_run):
    a = [(9, {"bbox/AP-3": 1.0}), (19, {"bbox/AP-3": 12.34, "bbox/AP-person": math.nan})]
    b = [(19, {"bbox/AP-3": 56.7, "segm/AP-3": 9.0})]
    page = report(*(detection_run(tmp_path / n, lines) for n, lines in (("a", a), ("b", b))))
    assert page.table("box AP by class") == [
        ["class", "a", "b"],
        ["3", "12.3", "56.7"],
        ["person", "not finite", "–"],
    ]
    chart = page.charts()["box AP by class"]
    assert [(t["x"], t["y"]) for t in chart["data"]] == [([12.34], ["3"]), ([56.7], ["3"])]
    assert chart["layout"]["yaxis"]["type"] == "category"


def test_settings_that_differ_and_those_that_do_not(tmp_path, report, gan_run, metrics):
    a = gan_run(tmp_path / "a", [(1, metrics(5.0, 2.0))], "SOLVER.LR_G", "1e-4")
    b = gan_run(tmp_path / "b", [(1, metrics(6.0, 3.0))], "SEED", 3)
    page = report(a, b)
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in (a, b)]
    flat = [
        {f"{k}.{key}": v for k in c if isinstance(c[k], dict) for key, v in c[k].items()}
        | {k: v for k, v in c.items() if not isinstance(v, dict)}
        for c in configs
    ]
    differ = {key for key in flat[0] if flat[0][key] != flat[1][key]}
    assert differ == {"SOLVER.LR_G", "SEED", "OUTPUT_DIR"}
    head, *rows = page.table("BigGAN-deep: settings that differ")
    assert head == ["key", "a", "b"]
    assert {row[0]: row[1:] for row in rows} == {k: [str(c[k]) for c in flat] for k in differ}
    marked = {"".join(mark.itertext()) for mark in page.root.iter("mark")}
    assert marked == {str(flat[1][key]) for key in differ}
    expected = {k: str(v) for k, v in flat[0].items() if k not in differ}
    assert page.folded("settings alike") == expected
    assert "The runs differ in more than layer and seed: SOLVER.LR_G" in page.said


def test_one_run_each_is_said_and_seeds_are_summed_up(tmp_path, report, gan_run, metrics):
    a = gan_run(tmp_path / "a", [(1, metrics(5.0, 2.0))], "MODEL.NORM", "BN-ReLU")
    values = (7.0, 3.0, 4.0)
    runs = [
        gan_run(tmp_path / f"s{i}", [(1, metrics(fid, 2.0)), (2, metrics(9.0, 1.0))], "SEED", i)
        for i, fid in enumerate(values)
    ]
    single = report(a, runs[0])
    assert "One run each" in single.said and "Over seeds" not in single.said
    page = report(a, *runs)
    assert "One run each" not in page.said
    head, *rows = page.table("Over seeds")
    assert head[:3] == ["layer", "runs", f"FID-digits{REMARK}"]
    assert [row[:3] for row in rows] == [["EvoNormS0", "3", f"{median(values):.2f}3.00 to 7.00"]]
    gan_run(tmp_path / "s3", [(1, {"loss_d": 1.0})], "SEED", 3)  # not evaluated yet
    row = report(*runs, tmp_path / "s3").table("Over seeds")[1]
    assert row[:3] == ["EvoNormS0", "4", f"{median(values):.2f}3.00 to 7.00, 3 of 4 runs"]


def test_speed_and_memory_and_environment(tmp_path, report, gan_run, detection_run):
    times = (0.5, 0.1, 0.3)
    lines = [(i, {"time": t, "images_per_second": 16 / t}) for i, t in enumerate(times, 1)]
    gan = gan_run(tmp_path / "gan", lines)
    detector = detection_run(tmp_path / "det", [(i, {"time": t}) for i, t in enumerate(times)])
    page = report(gan, detector)
    head, first, second = page.table("Speed")
    assert head == ["run", "seconds per step", "images per second", "GPU memory (MiB)"]
    assert first == ["det", "0.3", "–", "1234"]
    assert second == ["gan", "0.3", f"{16 / 0.3:.3g}", "–"]
    import numpy
    import torchvision

    recorded = page.folded("entries alike in 1 run")
    assert recorded["numpy"] == numpy.__version__
    assert recorded["torchvision"].startswith(torchvision.__version__)
    assert "Not recorded by 1 of 2 runs" in page.said


def test_a_failed_run_is_shown_with_its_reason(tmp_path, report, gan_run):
    tool = tmp_path / "train_gan.py"
    tool.write_text("import sys; sys.exit('train_gan.py: the loss is nan & more')")
    job = Job(tmp_path / "failed", str(tool), "x.yaml", ("MODEL.NORM", "GN-ReLU", "SEED", "7"))
    assert run_job(job, {}) == "train_gan.py: the loss is nan & more"
    good = gan_run(tmp_path / "good", [(400, {"loss_d": 1.0})])
    page = report(job.folder, good)
    _, first, second = page.table("Runs")
    assert first[:5] == [
        *("failed", "BigGAN-deep", "GN-ReLU", "7"),
        "failed before its first figures: train_gan.py: the loss is nan & more",
    ]
    assert second[4] == "at step 400 of 1200"
    assert "1 failed" in page.said and "1 unfinished" in page.said


def test_a_run_without_figures_and_a_single_run(tmp_path, report, gan_run):
    page = report(gan_run(tmp_path / "only", []))
    assert page.table("Runs")[1][4] == "no figures yet"
    assert page.root.find(".//h1").text == "Run only"


@pytest.mark.parametrize(
    "paper, shown",
    [
        (None, []),
        ("42.1 box AP", ["The paper: 42.1 box AP"]),
        (["a", "b"], ["The paper: a", "The paper: b"]),
    ],
)
def test_the_table_of_a_reproduction_comes_first(tmp_path, report, gan_run, paper, shown):
    gan_run(tmp_path / "out/runs/a", [(1, {"loss_d": 1.0})])
    table = {"title": "Table 5 in small", "columns": ["layer", "FID"], "notes": ["A note."]}
    table |= {"rows": [["BN-ReLU", "7.85 ± 0.1"], ["GN", "-"]], "paper": paper}
    (tmp_path / "out/table.json").write_text(json.dumps(table))
    (tmp_path / "out/runs/table.json").write_text("[1, 2")
    page = report(tmp_path / "out")
    assert page.table("Table 5 in small") == [table["columns"], *table["rows"]]
    notes = page.by_id("tables").findall(".//ul/li")
    assert ["".join(note.itertext()) for note in notes] == ["A note.", *shown]
    assert f"{tmp_path}/out/runs/table.json is not a table" in page.said


def test_the_papers_rows_as_a_table_of_their_own(tmp_path, report, gan_run):
    run = gan_run(tmp_path / "a", [(1, {"loss_d": 1.0})])
    table = {"columns": ["layer", "FID"], "rows": [["GN", "1"]], "paper": [["GN", "8.14"]]}
    (tmp_path / "table.json").write_text(json.dumps(table))
    assert report(run).table("The paper's figures") == [["layer", "FID"], ["GN", "8.14"]]


def test_a_long_formula_is_shortened_in_tables_and_whole_beside_its_mathematics(
    tmp_path, report, gan_run, metrics
):
    norm = "x * sigmoid(v1 * x) / std_g(x) + tanh(x - mean_c(x)) / rms_i(x)"
    lines = [(1, metrics(3.0, 7.0))]
    runs = [gan_run(tmp_path / f"{i}", lines, "MODEL.NORM", norm, "SEED", i) for i in range(2)]
    page = report(*runs)
    shown = f"{norm[:43]}…"
    assert page.table("Runs")[1][2] == page.table("Over seeds")[1][0] == shown
    cut = [x for x in page.root.iter("span") if (x.text or "") == shown]
    assert len(cut) == 3 and {x.get("title") for x in cut} == {norm}
    (formula,) = (x for x in page.root.iter("dl") if x.get("class") == "formulas")
    assert formula.find("dt").text == norm
    assert page.folded("settings alike")["MODEL.NORM"] == norm


def test_the_formulas_of_the_layers_are_set_as_mathematics(tmp_path, report, gan_run, metrics):
    own, total = "x / (1 + abs(x))", "x + tanh(x)"
    runs = [
        gan_run(tmp_path / str(i), [(1, metrics(3.0, 7.0))], "MODEL.NORM", norm)
        for i, norm in enumerate(("EvoNormS0", own, total, "GN-ReLU"))
    ]
    config = (runs[0] / "config.yaml").read_text().replace("EvoNormS0", '"sigmod(x)"')
    runs.append(gan_run(tmp_path / "broken", [], files={"config.yaml": config}))
    page = report(*runs)
    (found,) = (x for x in page.root.iter("dl") if x.get("class") == "formulas")
    assert [name.text for name in found.findall("dt")] == ["EvoNormS0", own, total]
    first, second, third = found.findall("dd/math")
    numerator, denominator = first.find(".//mfrac")
    assert "".join("".join(numerator.itertext()).split()) == "xσ(v1x)"
    assert denominator.find("msqrt") is not None
    assert "".join("".join(second.find(".//mfrac")[1].itertext()).split()) == "|x|+1"
    texts = ["".join("".join(formula.itertext()).split()) for formula in (second, third)]
    assert texts == ["x|x|+1·γ+β", "(x+tanh(x))·γ+β"]
