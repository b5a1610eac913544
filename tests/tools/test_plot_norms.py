"""tools/plot_norms.py: curves against formulas written here, and pictures of made-up results."""

from __future__ import annotations

import json
import math

import pytest
import torch
from matplotlib.colors import same_color
from PIL import Image

from evonorm_repro import curves as tool
from evonorm_repro.search_curves import draw_search

X = torch.linspace(-3, 3, 7, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# With mean 0: y of x, the batch's deviation b, the feature map's s, and v; after the paper's
# tables 2 and 3, without eps.
EXPECTED = {
    "BN-ReLU": lambda x, b, s, v: max(x / b, 0),
    "BN-PReLU": lambda x, b, s, v: max(x, 0) / b + v * min(x, 0) / b,
    "BN-Swish": lambda x, b, s, v: x / b * sigmoid(v * x / b),
    "BN-Swish-1": lambda x, b, s, v: x / b * sigmoid(x / b),
    "RS+rej": lambda x, b, s, v: max(x, 0) / b,
    "Random+rej": lambda x, b, s, v: math.tanh(max(x, math.tanh(x))),
    "EvoNormB0": lambda x, b, s, v: x / max(b, v * x + s),
    "EvoNormB1": lambda x, b, s, v: x / max(b, (x + 1) * s),
    "EvoNormB2": lambda x, b, s, v: x / max(b, s - x),
    "GN-ReLU": lambda x, b, s, v: max(x / s, 0),
    "GN-Swish": lambda x, b, s, v: x / s * sigmoid(v * x / s),
    "FRN": lambda x, b, s, v: max(x / s, v),
    "EvoNormS0": lambda x, b, s, v: x * sigmoid(v * x) / s,
    "EvoNormS1": lambda x, b, s, v: x * sigmoid(x) / s,
    "EvoNormS2": lambda x, b, s, v: x * sigmoid(x) / s,
}
FIRST_V = {"BN-PReLU": 0, "FRN": 0}


def test_every_layer_that_is_drawn_has_a_formula_here():
    assert {*tool.BATCH, *tool.EVONORM_B, *tool.SAMPLE} == EXPECTED.keys()
    assert tool.OTHER_V.keys() < EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_curves(name):
    for batch in (0.5, 2.0):
        for sample in (0.5, 1.0):
            for v in {None, tool.OTHER_V.get(name)}:
                y = tool.curve(name, X, batch, sample, v)
                number = FIRST_V.get(name, 1) if v is None else v
                right = [EXPECTED[name](x, batch, sample, number) for x in X.tolist()]
                torch.testing.assert_close(y, X.new_tensor(right), rtol=1e-3, atol=1e-4)


def test_feature_maps_have_the_statistics_asked_for():
    maps = tool.feature_maps(X, 0.7)
    assert torch.equal(maps[:, 0, 0, 0], X)
    zero, deviation = torch.zeros_like(X), torch.full_like(X, 0.7)
    torch.testing.assert_close(maps.mean((1, 2, 3)), zero)
    torch.testing.assert_close(maps.std((1, 2, 3), correction=0), deviation)
    with pytest.raises(ValueError, match="0.01"):
        tool.feature_maps(X, 0.01)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_picture_has_the_same_bytes(record, call, tmp_path, suffix):
    file = tmp_path / "result.json"
    file.write_text(json.dumps(record))
    for name in ("a", "b"):
        assert call("small-batch", file, "-o", tmp_path / f"{name}{suffix}") == (0, "", "")
    a, b = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("a", "b"))
    assert a == b and len(a) > 10_000


def test_evonorm_b_has_a_panel_for_each_layer_and_deviation():
    figure = tool.draw_rows(tool.EVONORM_B)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:2] == [f"EvoNormB0, feature map's deviation {s}" for s in ("0.5", "1")]
    assert len(titles) == 9
    # The batch's deviation 2 in the last panel: where it is the larger one the line is x / 2.
    line = next(x for x in figure.axes[-1].lines if same_color(x.get_color(), tool.COLOURS[2]))
    assert line.get_ydata()[-1] == pytest.approx(1.5, abs=1e-4)


def test_layers_of_ones_own(call, tmp_path):
    out = tmp_path / "own.svg"
    formula = "(x - mean_b(x)) / std_b(x) * sigmoid(v1 * x)"
    assert call("layers", "FRN", formula, "-o", out) == (0, "", "") and out.stat().st_size > 10_000
    figure = tool.draw_rows(["FRN", formula])
    assert len(figure.axes) == 6
    # For a batch of deviation 2, v1 = 1 and x = 3, the end of the last line.
    line = next(x for x in figure.axes[-1].lines if same_color(x.get_color(), tool.COLOURS[2]))
    assert line.get_ydata()[-1] == pytest.approx(1.5 * sigmoid(3), abs=1e-4)


def row(layer, size, values, **more):
    found = {"mean": sum(values) / len(values), "spread": None, "values": values}
    return {"layer": layer, "ims_per_worker": size, "accuracy": found, **more}


@pytest.fixture
def record():
    return {
        "title": "a small task",
        "rows": [
            row("BN-ReLU", 4, [50.0, 54.0], paper={"accuracy": "70.7"}),
            row("BN-ReLU", 128, [90.0, 91.0], paper={"accuracy": "76.1"}),
            row("BN-ReLU", 2, [40.0, 42.0], paper={}),
            row("EvoNormS0", 128, [92.0, 94.0], paper={"accuracy": "77.4"}),
            {**row("EvoNormS0", 4, [0.0]), "accuracy": None},  # all of its runs failed
        ],
    }


def lines(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_small_batch(record):
    paper, ours = tool.draw_small_batch(record).axes
    assert "table 3" in paper.get_title() and ours.get_title() == "a small task"
    left, right = lines(paper), lines(ours)
    assert left["BN-ReLU"].get_xydata().tolist() == [[4, 70.7], [128, 76.1]]
    assert right["BN-ReLU"].get_xydata().tolist() == [[2, 41], [4, 52], [128, 90.5]]
    assert right["EvoNormS0"].get_xydata().tolist() == [[128, 93]]
    seeds = [line.get_xydata().tolist() for line in ours.lines if line.get_marker() == "."]
    assert [[4, 50], [4, 54]] in seeds and [[128, 92], [128, 94]] in seeds and len(seeds) == 4
    left, right = ours.get_xlim()
    assert left > right and ours.get_xscale() == "log"
    assert [tick.get_text() for tick in ours.get_xticklabels()] == ["2", "4", "128"]


def test_small_batch_without_the_papers_figures(record, call, tmp_path):
    for each in record["rows"]:
        each.pop("paper", None)
    file, out = tmp_path / "result.json", tmp_path / "small.png"
    file.write_text(json.dumps(record))
    assert call("small-batch", file, "-o", out) == (0, "", "")
    assert Image.open(out).size[0] > 600
    assert len(tool.draw_small_batch(record).axes) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"rows": []}',
        '{"rows": [{"layer": "FRN"}]}',
        '{"rows": [{"layer": "FRN", "ims_per_worker": 4, "accuracy": {"mean": "a"}}]}',
        '{"rows": [{"layer": "FRN", "ims_per_worker": "4", "accuracy": null}]}',
        '{"rows": [{"layer": "FRN", "ims_per_worker": 4, "accuracy": null}]}',
    ],
)
def test_only_results_of_table_3_are_drawn(call, tmp_path, text):
    file = tmp_path / "other.json"
    file.write_text(text)
    status, out, err = call("small-batch", file, "-o", tmp_path / "a.svg")
    assert (status, out) == (2, "") and not (tmp_path / "a.svg").exists()
    assert err.splitlines() == [
        f"plot_norms.py: {file}: not what reproduce.py table3 writes, or not one run ended well"
    ]


def test_widths(call, tmp_path):
    rows = [
        {**row(layer, 0, values), "width": width, "described": {"Params (M)": p, "MAdds (M)": m}}
        for layer, width, p, m, values in (
            ("BN-ReLU", 1.1, 4.0, 360.0, [75.0]),
            ("BN-ReLU", 0.9, 3.0, 240.0, [70.0, 72.0]),
            ("EvoNormB0", 0.9, 3.1, 240.0, [73.0]),
        )
    ]
    left, right = tool.draw_widths({"rows": rows}).axes
    assert lines(left)["BN-ReLU"].get_xydata().tolist() == [[3, 71], [4, 75]]
    assert lines(right)["BN-ReLU"].get_xydata().tolist() == [[240, 71], [360, 75]]
    assert lines(right)["EvoNormB0"].get_xydata().tolist() == [[240, 73]]
    file, out = tmp_path / "result.json", tmp_path / "widths.svg"
    file.write_text(json.dumps({"rows": rows}))
    assert call("widths", file, "-o", out) == (0, "", "") and out.stat().st_size > 10_000
    status, _, err = call("small-batch", file, "-o", tmp_path / "other.svg")
    assert status == 2 and "not what reproduce.py table3 writes" in err
    del rows[0]["described"]
    file.write_text(json.dumps({"rows": rows}))
    status, _, err = call("widths", file, "-o", tmp_path / "other.svg")
    assert status == 2 and "not what reproduce.py figure11 writes" in err


def test_ranks(call, tmp_path):
    orders = [[0.5, ["A", "B"]], [1.0, ["B", "A"]]]
    settling = [{"at": size, "orders": orders} for size in (8, 4, 2)]
    record = {"rows": [{"layer": "A"}, {"layer": "B"}], "settling": settling}
    *panels, empty = tool.draw_ranks({**record, "settling": [*settling, {"orders": []}]}).axes
    assert [ax.get_title() for ax in [*panels, empty]] == ["8", "4", "2"]
    assert lines(panels[0])["A"].get_xydata().tolist() == [[50, 1], [100, 2]]
    assert lines(empty)["B"].get_xydata().tolist() == [[50, 2], [100, 1]]
    file, out = tmp_path / "result.json", tmp_path / "ranks.svg"
    file.write_text(json.dumps(record))
    assert call("ranks", file, "-o", out) == (0, "", "") and out.stat().st_size > 10_000
    file.write_text(json.dumps({**record, "settling": [{"at": None, "orders": []}]}))
    status, _, err = call("ranks", file, "-o", tmp_path / "other.svg")
    assert status == 2 and "no run was evaluated" in err


def test_search(call, tmp_path):
    settings = {"anchors": ["one", "two"], "graph": [], "formula": "x", "fingerprint": ""}
    table = [
        {**settings, "search": name, "key": key, "drawn_after": key, "parent": parent}
        | {"same_as": None, "quality": [quality, 0.3], "scores": scores}
        | {"stage": "trained" if scores else "quality"}
        for name, key, parent, quality, scores in (
            ("a", 0, None, 0.1, []),
            ("a", 1, None, 0.31, [0.4, 0.6]),
            ("a", 2, 1, 0.5, [0.9, 0.7]),
            ("b", 0, None, 0.31, []),
        )
    ]
    table.append({**table[1], "key": 3, "same_as": 1})  # shares a result: counted once
    best, random, networks = draw_search(table).axes
    assert list(lines(best)) == ["a"]  # none of b was trained
    assert lines(best)["a"].get_xydata().ravel() == pytest.approx([2, 50, 3, 65])
    heights = [patch.get_height() for patch in random.patches]
    assert heights[2] == 1 and heights[6] == 2 and sum(heights) == 3
    assert lines(networks)["two"].get_xydata().ravel() == pytest.approx([40, 60, 90, 70])
    file, out = tmp_path / "table.jsonl", tmp_path / "search.svg"
    file.write_text("\n".join(map(json.dumps, table)))
    assert call("search", file, "-o", out) == (0, "", "") and out.stat().st_size > 10_000
    file.write_text(json.dumps(table[0]))
    status, _, err = call("search", file, "-o", tmp_path / "other.svg")
    assert status == 2 and "no layer that was trained" in err
    file.write_text('{"accuracy": 0.5}')
    status, _, err = call("search", file, "-o", tmp_path / "other.svg")
    assert status == 2 and "a line is no row of a search: same_as" in err


def test_bad_arguments(call, tmp_path):
    kept = tmp_path / "kept.svg"
    kept.write_text("kept")
    for arguments, line in (
        (("batch", "-o", kept), "exists"),
        (("batch", "-o", tmp_path / "a.txt"), ".svg"),
        (("layers", "EvoNormS9", "-o", tmp_path / "a.svg"), "unknown norm-act 'EvoNormS9'"),
        (("batch", "-o", tmp_path / "none" / "a.svg"), "no folder"),
        (("small-batch", tmp_path / "none.json", "-o", tmp_path / "a.svg"), "none.json"),
    ):
        status, out, err = call(*arguments)
        assert (status, out) == (2, "") and line in err and len(err.splitlines()) == 1
    assert kept.read_text() == "kept"
    assert call("else", "-o", tmp_path / "a.svg")[0] == 2
