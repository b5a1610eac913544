"""What a page says of searches for layers, from stores that the search's own writer wrote."""

from __future__ import annotations

import json
import random
import sqlite3
from statistics import mean, pstdev

import pytest

from evonorm_search.config import load_config
from evonorm_search.space import Space, formula
from evonorm_search.store import FILE, Candidate, Store

ANCHORS = ("ResNet-small", "EfficientNet-small", "MobileNetV2-small")
BEST = (("sigmoid", (0,)), ("mul", (0, 4)), ("rms_g", (0,)), ("div", (5, 6)))  # EvoNorm-S2
PLAIN = (("neg", (0,)), ("abs", (0,)), ("sqrt", (0,)), ("exp", (0,)))
COUNTS = {"ignores its input": 70, "formula seen before": 3, "new": 41}


def candidates(count=40):
    """The best one is the last, and a child of the one before it, which is a child of the first."""
    rng, space = random.Random(0), Space(nodes=4, batch=False)
    for key in range(count):
        graph = {0: PLAIN, count - 1: BEST}.get(key) or space.random(rng)
        result = {"stage": "quality", "quality": [0.05], "worst": [], "scores": []}
        if key % 3 == 0:
            scores = [0.9, 0.8, 0.7] if key == count - 1 else [rng.random() / 2 for _ in ANCHORS]
            result |= {"stage": "trained", "quality": [0.3] * 3, "scores": scores}
        parent = {count - 1: 3, 3: 0}.get(key)
        yield Candidate(key, graph, str(formula(graph)), b"", key, parent), result


@pytest.fixture
def search(tmp_path):
    """search(name, *KEY VALUE): the folder of a search of 40 candidates of 60, and its store."""

    def make(name="s", *overrides):
        folder = tmp_path / name
        folder.mkdir()
        cfg = load_config(
            "configs/search/small_s.yaml",
            ["CANDIDATES", "60", "ANCHORS", repr(ANCHORS), *overrides],
        )
        (folder / "config.yaml").write_text(cfg.dump())
        store = Store(folder, "a space")
        for candidate, result in candidates():
            store.add(candidate, result, counts=COUNTS)
        shared = Candidate(50, BEST, "x", b"", 40, None, 39)
        store.add(shared, list(candidates())[39][1], counts=COUNTS)
        return folder

    return make


def test_a_search_that_runs(search, report):
    folder = search()
    open_store = Store(folder)  # as the search has it
    page = report(folder)
    assert "at candidate 40 of 60" in page.said and "can't be read" not in page.said
    trained = [mean(result["scores"]) for _, result in candidates() if result["scores"]]
    ten = sorted(trained)[-10:]
    results = page.table("Layer search: results")
    assert results[1][-2:] == ["80.00", f"{100 * mean(ten):.2f}"]
    best = page.table("Best layers: s")
    assert best[0][2:5] == [f"{name} (%)" for name in ANCHORS]
    assert best[1][:5] == ["39", "80.0 front", "90.0", "80.0", "70.0"] and len(best) == 11
    assert best[1][5].endswith("x * sigmoid(x) / rms_g(x)")
    assert len(list(page.by_id("search-found").iter("math"))) >= 10
    funnel = dict(zip(*page.table("Funnel")))
    expected = {"graphs drawn": 114, "ignores its input": 70, "evaluated": 40, "of low quality": 26}
    expected |= {"unstable": 0, "trained": 14, "shared results": 1}
    assert {key: funnel[key] for key in expected} == {k: str(v) for k, v in expected.items()}
    ancestors = page.table("Ancestors of the best layer: s")
    assert [row[0] for row in ancestors[1:]] == ["0", "3", "39"]
    open_store.set("next", 99)  # it still may write


def test_the_charts_show_the_rows(search, report):
    charts = report(search("a"), search("b", "SEED", "1")).charts()
    title = "Mean accuracy of the ten best, and its standard deviation (figure 10)"
    trained = [(k + 1, mean(r["scores"])) for k, (_, r) in enumerate(candidates()) if r["scores"]]
    ten = sorted(value for _, value in trained)[-10:]
    for index in (0, 1):
        low, high, middle = (t for t in charts[title]["data"] if t["meta"] == index)
        assert middle["x"] == [count for count, _ in trained]
        assert middle["y"][-1] == pytest.approx(100 * mean(ten), abs=1e-3)
        assert high["y"][-1] - low["y"][-1] == pytest.approx(200 * pstdev(ten), abs=1e-3)
    # 26 accuracies of 5 % at the rejection and 14 after the training, but on one network only.
    first, second = (charts[f"{name} (figure 2)"]["data"][0]["y"] for name in ANCHORS[:2])
    assert sum(first) == 40 and first[2] >= 26 and sum(second) == 14
    all_of, front = charts["EfficientNet-small against ResNet-small (figure 4)"]["data"][:2]
    assert len(all_of["x"]) == 14 and [front["x"], front["y"]] == [[90.0], [80.0]]
    (ops,) = charts["a: candidates with each op (%)"]["data"]
    row = ops["z"][ops["y"].index("sigmoid")]
    assert row[-1] >= 50 and len(row) == len(ops["x"]) == 30 and ops["x"][-1] == 40
    lines, nodes = charts["The ten best and their ancestors"]["data"][:2]
    at = dict(zip(nodes["x"], nodes["y"]))
    assert lines["x"] == [0, 3, None, 3, 39, None] and at[39] == 80.0
    assert [at[x] for x in (0, 3)] == pytest.approx(lines["y"][:2], abs=1e-3)
    depends = charts["Graphs that are left after each stage"]["data"][0]
    assert dict(zip(depends["y"], depends["x"])) == {
        **{"drawn": 114, "depend on x": 44},
        **dict.fromkeys(["formula is new", "finite", "not constant"], 41),
        **dict.fromkeys(["have a gradient", "values are new"], 41),
        **{"evaluated": 40, "learn at once": 14, "stable, trained": 14},
    }


def test_a_search_before_its_first_candidate(tmp_path, report):
    folder = tmp_path / "new"
    folder.mkdir()
    Store(folder, "a space")
    page = report(folder)
    assert "no figures yet" in page.said and not page.by_id("runs").findall(".//*[@class='failed']")


def test_a_survey_has_the_line_of_a_known_layer(search, report):
    folder = search("a")
    known = dict(zip(ANCHORS, (0.875, 0.8, 0.95)))
    (folder / "survey.json").write_text(json.dumps({"known": {**known, "x": 7.0, "y": "<b>"}}))
    charts = report(folder).charts()
    dashed = charts["ResNet-small (figure 2)"]["data"][1]
    assert dashed["x"] == [87.5, 87.5] and dashed["line"]["dash"] == "dash"
    title = "Mean accuracy of the ten best, and its standard deviation (figure 10)"
    assert charts[title]["data"][3]["y"] == pytest.approx([87.5, 87.5])


def test_damaged_stores(search, report, tmp_path):
    folder = search("rows")
    with sqlite3.connect(folder / FILE) as db:
        bad = [
            (1, "result", "[]"),
            (2, "result", json.dumps({"stage": "trained", "quality": [], "scores": []})),
            (4, "result", json.dumps({"stage": "trained", "quality": [], "scores": ["<b>"]})),
            (5, "result", json.dumps({"stage": "quality", "quality": [5.0], "scores": []})),
            (7, "graph", '[["add", [9, 9]]]'),
            (8, "graph", "[]"),
        ]
        for key, column, value in bad:
            db.execute(f"UPDATE candidates SET {column} = ? WHERE key = ?", [value, key])
        db.execute("UPDATE candidates SET formula = '<script>x</script>' WHERE key = 39")
        db.execute("UPDATE candidates SET parent = 39 WHERE key = 3")  # a loop
    text = tmp_path / "text"
    text.mkdir()
    (text / FILE).write_text("not a store")
    json_ = search("json")
    with sqlite3.connect(json_ / FILE) as db:
        db.execute("UPDATE candidates SET graph = 'x' WHERE key = 9")
    page = report(folder, text, json_)
    assert "search.sqlite: 6 damaged results left out" in page.said
    assert page.said.count("search.sqlite can't be read: ") == 2
    assert "<script>x</script>" not in page.text and "&lt;script&gt;x" in page.text
