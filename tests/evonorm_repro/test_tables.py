"""Each table's runs: settings that their tools take, and figures as the tools write them."""

from __future__ import annotations

import importlib
import json
import shlex

import pytest

from evonorm import build_norm_act
from evonorm_gan.evaluation.metrics import metric_key
from evonorm_repro.costs import describe, trained_images
from evonorm_repro.present import as_table
from evonorm_repro.reproduction import reproduce, seed_jobs, tuning_jobs
from evonorm_repro.tables import SCALES, TABLES, Table4
from evonorm_runs.errors import UserError
from evonorm_runs.grid import ROOT

LOADERS = {
    "tools/train_net.py": "evonorm_d2.run_config",
    "tools/train_gan.py": "evonorm_gan.config",
    "tools/train_classifier.py": "evonorm_classifier.config",
}
EXPERIMENTS = [(t, s, m) for t in TABLES for s in SCALES for m in TABLES[t].models]
NORM = {
    "tools/train_net.py": lambda cfg: {
        cfg.MODEL[site].NORM for site in ("RESNETS", "FPN", "RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
    },
}


@pytest.mark.parametrize(("table", "scale", "model"), EXPERIMENTS)
def test_every_run_is_a_config_that_its_tool_takes(table, scale, model):
    experiment = TABLES[table](scale, model)
    load = importlib.import_module(LOADERS[experiment.tool]).load_config
    for norm in experiment.norms:
        for condition in experiment.conditions:
            settings = experiment.settings(norm, 2.0, condition)
            device = "MODEL.DEVICE" if experiment.tool == "tools/train_net.py" else "DEVICE"
            settings = [*settings, "SEED", "1", device, "cpu"]
            cfg = load(str(ROOT / experiment.config), settings)
            found = NORM.get(experiment.tool, lambda cfg: {cfg.MODEL.NORM})(cfg)
            assert found == {norm.removesuffix("+WS")} and cfg.SEED == 1


@pytest.mark.parametrize("table", [table for table in TABLES if table != "figure11"])
def test_the_learning_rate_is_a_multiple_of_the_configs(table):
    for scale in SCALES:
        experiment = TABLES[table](scale, TABLES[table].models[0])
        load = importlib.import_module(LOADERS[experiment.tool]).load_config
        device = "MODEL.DEVICE" if experiment.tool == "tools/train_net.py" else "DEVICE"
        key = "LR_G" if table == "table5" else "BASE_LR"
        config = str(ROOT / experiment.config)
        own, doubled = (
            load(config, [*settings, device, "cpu"]).SOLVER[key]
            for settings in ([], experiment.settings(experiment.norms[0], 2.0, None))
        )
        assert doubled == pytest.approx(2 * own)


@pytest.mark.parametrize(
    "model, sites, rate, images",
    [  # table 2's network, and section 5.1's learning rate for 256 images and images per step
        ("preact_resnet", "preact_resnet50", 0.1, 1024),
        ("preact_resnet101", "preact_resnet101", 0.1, 1024),
        ("mobilenet_v2", "mobilenet_v2", 0.1, 4096),
        ("mnasnet_b1", "mnasnet_b1", 0.1, 4096),
        ("efficientnet_b0", "efficientnet_b0", 0.016, 4096),
        ("efficientnet_b5", "efficientnet_b5", 0.016, 2048),
    ],
)
def test_table_2_trains_the_papers_models_at_the_papers_rates(model, sites, rate, images):
    experiment = TABLES["table2"]("paper", model)
    load = importlib.import_module(LOADERS[experiment.tool]).load_config
    settings = experiment.settings("EvoNormB0", 1.0, None)
    cfg = load(str(ROOT / experiment.config), [*settings, "DEVICE", "cpu"])
    assert cfg.MODEL.NAME == sites
    assert cfg.SOLVER.BASE_LR / cfg.SOLVER.REFERENCE_BATCH == pytest.approx(rate / 256)
    assert cfg.SOLVER.IMS_PER_WORKER * cfg.SOLVER.WORKERS == images
    assert cfg.INPUT.SIZE == (456 if model == "efficientnet_b5" else 224)


@pytest.mark.parametrize(("table", "lr"), [("table3", 10.0), ("table4", 1 / 0.03), ("table5", 2e3)])
def test_a_whole_number_is_a_learning_rate_too(table, lr):
    experiment = TABLES[table]("small", TABLES[table].models[0])
    load = importlib.import_module(LOADERS[experiment.tool]).load_config
    device = "MODEL.DEVICE" if experiment.tool == "tools/train_net.py" else "DEVICE"
    settings = experiment.settings(experiment.norms[0], lr, None)
    cfg = load(str(ROOT / experiment.config), [*settings, device, "cpu"])
    assert cfg.SOLVER["LR_G" if table == "table5" else "BASE_LR"] == 1.0


@pytest.mark.parametrize("table", ["table2", "table3", "figure11"])
def test_rates_are_chosen_on_images_that_no_reported_run_is_measured_on(table, tmp_path):
    experiment = TABLES[table]("small", TABLES[table].models[0])
    load = importlib.import_module(LOADERS[experiment.tool]).load_config
    tuning = tuning_jobs(experiment, ["BN-ReLU"], tmp_path, ()).values()
    reported = seed_jobs(experiment, ["BN-ReLU"], 1, tmp_path, (), {}).values()
    for jobs, split in ((tuning, "val"), (reported, "test")):
        configs = [load(str(ROOT / job.config), [*job.settings, "DEVICE", "cpu"]) for job in jobs]
        assert {(c.DATA.NAME, c.TEST.SPLIT) for c in configs} == {("garments", split)}
        assert {c.SOLVER.EPOCHS for c in configs} == {8}  # both of the full length


def test_the_papers_figures():
    table3 = TABLES["table3"]("paper", "preact_resnet").paper
    assert table3["BN-ReLU", 4] == {"accuracy": "70.7"}  # the paper's collapse
    assert table3["EvoNormS0", 4] == {"accuracy": "77.5"}
    assert ("BN-ReLU", 2) not in table3
    assert TABLES["table3"]("small", "mobilenet_v2").paper["BN-ReLU", 4] == {"accuracy": "60.4"}
    table2 = TABLES["table2"]("paper", "preact_resnet").paper
    assert table2["EvoNormB0", None] == {"accuracy": "77.8"}
    assert table2["RS+rej", None] == {"accuracy": "76.3"}
    found = [TABLES["table2"]("paper", m).paper for m in TABLES["table2"].models]
    b0 = [figures["EvoNormB0", None]["accuracy"] for figures in found]
    assert b0 == ["77.8", "79.1", "75.1", "75.3", "76.8", "83.6"]
    assert {frozenset(x) for x in found} == {frozenset(table2)}
    table4 = Table4("paper", "R-50").paper["EvoNormS0", None]
    assert (table4["bbox/AP"], table4["segm/AP75"]) == ("43.6", "42.7")
    table5 = TABLES["table5"]("paper", "BigGAN-deep").paper
    assert table5["EvoNormS0", None] == {"IS": "104.64/113.96", "FID": "6.86/6.26"}
    assert set(table5) == {(norm, None) for norm in TABLES["table5"].norms}
    batch = [norm for norm in TABLES["table2"].norms if build_norm_act(norm, 8).batch_dependent]
    assert set(TABLES["table2"].norms) - set(batch) == {"Random", "Random+rej"}


def test_other_data_where_the_garments_belong_are_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "garments").mkdir()
    (tmp_path / "garments" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"garments exists and is not the garments data set"):
        Table4("small", "R-50").prepare()
    assert (tmp_path / "garments" / "mine.txt").read_text() == "mine"


def test_table_4_in_small_trains_with_as_many_images_at_each_batch():
    """Learning rate, warm-up, steps and evaluations follow the linear rule."""
    experiment = Table4("small", "R-50")
    load = importlib.import_module(LOADERS[experiment.tool]).load_config

    def config(norm, images, *more):
        settings = [*experiment.settings(norm, 2.0, images), *more, "MODEL.DEVICE", "cpu"]
        return load(str(ROOT / experiment.config), settings)

    one, other = (config("EvoNormS0", images).SOLVER for images in experiment.conditions)
    assert (one.IMS_PER_BATCH, other.IMS_PER_BATCH) == (8, 2)
    assert one.MAX_ITER * 8 == other.MAX_ITER * 2
    assert one.BASE_LR / 8 == pytest.approx(other.BASE_LR / 2) == pytest.approx(2 * 0.03 / 4)
    assert 4 * one.WARMUP_ITERS == other.WARMUP_ITERS
    assert [4 * step for step in one.STEPS] == list(other.STEPS)
    late = [n for n in range(1, 7) if n * config("EvoNormS0", 8).TEST.EVAL_PERIOD >= 400]
    assert one.MAX_ITER == 600 and len(late) == 3  # evaluations in the last third
    tuning = config("EvoNormS0", 8, *experiment.held_out).DATASETS
    assert tuning.TEST == ("garments_val",)
    assert config("EvoNormS0", 8).DATASETS.TEST == ("garments_test",)
    linear = {norm: config(norm, 8).MODEL.EVONORM.LINEAR for norm in experiment.norms}
    assert {norm for norm in linear if not linear[norm]} == {"BN-ReLU"}
    standardized = [
        norm
        for norm in experiment.norms
        if config(norm, 8).MODEL.META_ARCHITECTURE == "WeightStandardizedRCNN"
    ]
    assert standardized == ["GN-ReLU+WS"]


def test_table_4_in_small_has_a_column_for_each_metric_and_batch():
    experiment = Table4("small", "R-50")
    rows = []
    for norm in ("BN-ReLU", "GN-ReLU+WS"):
        for images in experiment.conditions:
            row = {"layer": norm, "ims_per_batch": images, "learning rate": "1 x", "seeds": [0]}
            row |= {"failed": {}, "tuning": {}, "described": {}}
            row["paper"] = experiment.paper.get((norm, images), {})
            for k, metric in enumerate(experiment.metrics):
                row[metric.key] = {"mean": 10 * images + k, "spread": None, "values": [1.0]}
            rows.append(row)
    table = as_table(experiment, {"rows": rows, "comparisons": []})
    columns = ["box AP at 8", "mask AP at 8", "box AP at 2", "mask AP at 2"]
    assert table["columns"][3:] == columns
    assert table["rows"][0][3:] == ["80.0", "83.0", "20.0", "23.0"]
    assert table["rows"][1] == ["  paper", "", "", "42.1", "37.8", "", ""]  # 8 on each worker
    assert table["rows"][2][0] == "GN-ReLU+WS" and len(table["rows"]) == 3


def test_detections_figures_are_the_last(tmp_path):
    lines = [{"iteration": 10, "bbox/AP": 1.0, "total_loss": 3.0}, {"iteration": 20}]
    for task in ("bbox", "segm"):
        lines[1] |= {f"{task}/AP": 30.0, f"{task}/AP50": 50.0, f"{task}/AP75": float("nan")}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    # Cut short, once by a crash before the run went on.
    (tmp_path / "metrics.json").write_text('{"lr": 1{"iteration": 3}\n' + text + '{"bbox/AP": 9')
    found = Table4("small", "R-50").read(tmp_path)
    assert found["bbox/AP"] == 30.0 and found["segm/AP75"] != found["segm/AP75"]
    (tmp_path / "metrics.json").write_text(json.dumps(lines[0]))
    with pytest.raises(UserError, match="no bbox/AP50 in it"):
        Table4("small", "R-50").read(tmp_path)


def test_gans_figures_are_each_at_its_peak(tmp_path):
    keys = [metric_key(name, "digits") for name in ("IS", "FID")]
    lines = [dict(zip(keys, pair)) for pair in ((2.0, 9.0), (3.0, 5.0), (2.5, 4.0))]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.yaml").write_text((ROOT / "configs/gan/digits.yaml").read_text())
    assert TABLES["table5"]("small", "BigGAN-deep").read(tmp_path) == {"IS": 3.0, "FID": 4.0}


def test_madds_and_params_are_the_papers():
    experiment = Table4("paper", "R-50")
    found = experiment.describe("EvoNormS0")
    paper = experiment.paper["EvoNormS0", None]
    assert f"{found['Params (M)']:.2f}" == paper["Params (M)"]
    assert found["MAdds (B)"] == pytest.approx(float(paper["MAdds (B)"]), rel=0.003)


class TestCosts:
    @pytest.mark.parametrize(
        "table, model, images",
        [
            ("table2", "preact_resnet", 112_590 * 1024),  # 90 epochs of 1,281,167 // 1024 steps
            ("table2", "efficientnet_b5", 350 * 625 * 2048),
            ("table4", "R-50", 135_000 * 64),  # section 5.4
            ("table5", "BigGAN-deep", 250_000 * 2048),
        ],
    )
    def test_images_of_a_run_at_the_papers_size(self, table, model, images, tmp_path):
        experiment = TABLES[table]("paper", model)
        experiment.factors = (1.0,)
        jobs = seed_jobs(experiment, experiment.norms[:1], 1, tmp_path, (), {})
        assert trained_images(jobs[experiment.norms[0], None, 0]) == images

    def test_finished_runs_cost_nothing_more(self, tmp_path):
        experiment = TABLES["table2"]("paper", "preact_resnet")
        experiment.factors = (1.0,)
        arguments = (experiment, ["BN-ReLU", "EvoNormB0"], 2, tmp_path, ["SOLVER.EPOCHS", "10"], 0)
        each = 10 * 1251 * 1024
        text = describe(*arguments)
        assert text.count("python ") == 4 and f"{4 * each:,} images to train with" in text
        hours = f"{4 * each / 3.6e6:,.0f} GPU hours at 1,000 images a second and GPU, a round"
        assert hours in text
        (done, *_) = seed_jobs(*arguments[:5], {}).values()
        done.folder.mkdir(parents=True)
        settings = [done.tool, done.config, *done.settings]
        (done.folder / "job.json").write_text(json.dumps({"settings": settings, "seconds": 1.0}))
        text = describe(*arguments, 2500.0)
        assert "# 4 runs of the table, 1 of them finished" in text and text.count("python ") == 3
        hours = f"{3 * each / 2500 / 3600:.2g} GPU hours at 2,500 images a second and GPU, as"
        assert hours in text
        command = next(line for line in text.splitlines() if line.startswith("python "))
        second = list(seed_jobs(*arguments[:5], {}).values())[1]
        assert shlex.split(command)[1:] == second.command(0)

    def test_runs_to_choose_a_learning_rate_are_counted(self, tmp_path):
        experiment = TABLES["table2"]("small", "preact_resnet")
        text = describe(experiment, ["BN-ReLU"], 3, tmp_path, (), 0)
        each = 8 * (8000 // 128) * 128
        assert "# 5 runs to choose the learning rate, 0 of them finished" in text
        assert f"{(5 + 3) * each:,} images to train with" in text


class TestFigure11:
    def test_its_learning_rate_is_table_2s(self):
        for scale in SCALES:
            settings = TABLES["figure11"](scale, "mobilenet_v2").settings("BN-ReLU", 2.0, 1.1)
            pairs = dict(zip(settings[::2], settings[1::2]))
            assert pairs["SOLVER.BASE_LR"] == "0.2"
            assert float(pairs["MODEL.WIDTH"]) == pytest.approx(1.1 if scale == "paper" else 0.385)

    def test_parameters_and_madds_are_those_of_mobilenet_v2(self):
        experiment = TABLES["figure11"]("paper", "mobilenet_v2")
        bn, b0 = (experiment.describe(norm, 1.0) for norm in ("BN-ReLU", "EvoNormB0"))
        # Parameters by torchvision's documentation, MAdds as the paper of MobileNetV2 has them.
        assert bn["Params (M)"] == pytest.approx(3.504872) and round(bn["MAdds (M)"]) == 301
        assert b0["Params (M)"] == pytest.approx(3.504872 + 0.015552)  # v
        assert b0["MAdds (M)"] == bn["MAdds (M)"]

    def test_the_widths_of_a_table(self, tmp_path):
        experiment = TABLES["figure11"]("small", "mobilenet_v2")
        experiment.factors = (1.0,)
        results = reproduce(experiment, ["EvoNormB0"], 1, tmp_path, lambda jobs: None)
        table = as_table(experiment, results)
        assert table["columns"] == ["layer", "learning rate", "seeds", "0.9", "1.0", "1.1"]
        assert table["rows"][1] == ["  paper", "", "", "", "75.1", ""]
        sizes = [row["described"]["Params (M)"] for row in results["rows"]]
        assert sizes == sorted(sizes) and sizes[0] < sizes[2]
        note = f"EvoNormB0 at 0.9: Params (M) {sizes[0]:.2f}, MAdds (M) "
        assert any(line.startswith(note) for line in table["notes"])
