from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

CONFIGS = Path(__file__).resolve().parents[2] / "configs/detection"
S0 = CONFIGS / "stock/mask_rcnn_R_50_FPN_1x_EvoNormS0.yaml"


def test_paper_layout_agrees_with_table_4(call, tmp_path):
    status, out, _ = call("--paper-layout", "--json", tmp_path / "counts.json")
    assert status == 0
    rows = json.loads((tmp_path / "counts.json").read_text())["table_4"]
    # Table 4, MAdds (B) and Params (M), by backbone and column.
    table_4 = {
        ("R-50-FPN", "BN-ReLU"): (332.0, 46.37),
        ("R-50-FPN", "EvoNorm-B0"): (332.3, 46.38),
        ("R-50-FPN", "GN-ReLU"): (332.3, 46.37),
        ("R-50-FPN", "EvoNorm-S0"): (331.9, 46.38),
        ("R-101-FPN", "BN-ReLU"): (409.8, 65.36),
        ("R-101-FPN", "EvoNorm-B0"): (410.1, 65.38),
        ("R-101-FPN", "GN-ReLU"): (410.3, 65.36),
        ("R-101-FPN", "EvoNorm-S0"): (409.7, 65.38),
    }
    assert [(row["backbone"], row["layer"]) for row in rows] == list(table_4)
    for row, (madds, params) in zip(rows, table_4.values()):
        assert round(row["parameters"] / 1e6, 2) == params
        assert row["madds"] / 1e9 == pytest.approx(madds, rel=0.005)
        assert row["paper"] == {"parameters_in_millions": params, "madds_in_billions": madds}
        convs = 330.889 if row["backbone"] == "R-50-FPN" else 408.467
        assert round(row["conv_madds"] / 1e9, 3) == convs
    exact = {
        ("R-50-FPN", "BN-ReLU"): 46.3671,
        ("R-50-FPN", "EvoNorm-S0"): 46.3793,
        ("R-101-FPN", "BN-ReLU"): 65.3592,
        ("R-101-FPN", "EvoNorm-S0"): 65.3801,
    }
    for row in rows:
        key = row["backbone"], row["layer"]
        assert round(row["parameters"] / 1e6, 4) == exact.get(
            key, round(row["parameters"] / 1e6, 4)
        )
    head, *lines = out.splitlines()
    assert head.split()[:2] == ["backbone", "layer"]
    first = lines[0].split()
    assert first[:5] == ["R-50-FPN", "BN-ReLU", "46.3671", "46.37", "+0.00"]
    assert float(first[7]) == pytest.approx(float(first[5]) - 332.0, abs=1e-3)
    assert len({len(line) for line in out.splitlines()}) == 1


def test_one_model_as_table_and_json(call, tmp_path):
    file = tmp_path / "counts.json"
    overrides = ["MODEL.RESNETS.DEPTH", "101", "MODEL.RPN.NORM", ""]
    status, out, _ = call("--config-file", S0, *overrides, "--json", file)
    assert status == 0
    result = json.loads(file.read_text())
    assert result["overrides"] == overrides
    assert set(result["versions"]) == {"python", "torch", "detectron2"}
    names = ["backbone", "RPN head", "box head", "mask head", "total"]
    assert list(result["parts"]) == names
    # Detectron2's own layout has 64.703 M with GN at R-101, and EvoNorm's v adds 18,368.
    assert result["parts"]["total"]["parameters"] == pytest.approx(64.703e6 + 18_368, abs=500)
    for line, (name, part) in zip(out.splitlines()[1:], result["parts"].items()):
        assert line.startswith(name)
        madds, norms = part["madds"], part["norm_madds"]
        assert madds == norms + part["conv_madds"]
        printed = [float(cell) for cell in line.removeprefix(name).split()]
        exact = [part["parameters"] / 1e6, madds / 1e9, norms / 1e9, part["activations"] / 1e6]
        assert printed == pytest.approx(exact, abs=5.1e-4)


def test_nothing_is_overwritten(call, tmp_path):
    file = tmp_path / "kept.json"
    file.write_text("kept")
    status, out, err = call("--config-file", S0, "--json", file)
    assert (status, out) == (2, "")
    assert err == f"analyze_model.py: {file} exists already: remove it or choose another name\n"
    assert file.read_text() == "kept"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config-file", "missing.yaml"), "missing.yaml"),
        (("--config-file", S0, "MODEL.NOTHING", "1"), "command line: .*MODEL.NOTHING"),
        (("--config-file", S0, "MODEL.MASK_ON"), "command line: .*"),
        (("--config-file", S0, "MODEL.FPN.NORM", "EvoNormS9"), "MODEL.FPN.NORM: .*'EvoNormS"),
        (("--config-file", S0, "MODEL.META_ARCHITECTURE", "FCOS5"), "FCOS5"),
        (("--config-file", S0, "MODEL.RESNETS.DEPTH", "77"), "MODEL.RESNETS.DEPTH is 77"),
        (("--paper-layout", "MODEL.FPN.NORM", "GN"), "--paper-layout takes no overrides"),
        (("--config-file", S0, "--json", "nowhere/x.json"), "nowhere/x.json"),
    ],
)
def test_bad_input_is_one_line_and_status_2(call, arguments, message):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    line = err.splitlines()[-1]
    assert line.startswith("analyze_model.py: ")
    assert re.search(message, line), line


@pytest.mark.parametrize(
    "text",
    ["", "- a list", "MODEL: {MASK_ON: [", "_BASE_: missing.yaml", "MODEL: {MASK_ON: 3}", "NO: 1"],
)
def test_a_broken_yaml_is_named(call, tmp_path, text):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    status, out, err = call("--config-file", file)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert str(tmp_path) in err


def test_a_yaml_runs_no_code(call, tmp_path):
    file = tmp_path / "untrusted.yaml"
    mark = tmp_path / "ran"
    file.write_text(f'MODEL: {{WEIGHTS: !!python/object/apply:os.mkdir ["{mark}"]}}\n')
    status, _, err = call("--config-file", file)
    assert status == 2
    assert str(file) in err
    assert not mark.exists()


@pytest.mark.parametrize("arguments", [(), ("--paper-layout", "--config-file", S0)])
def test_one_of_the_two_tasks_is_needed(call, arguments):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert "--paper-layout" in err
