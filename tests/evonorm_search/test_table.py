"""The published table, and the example of its page on a made one."""

from __future__ import annotations

import gzip
import random
import re
from pathlib import Path

import pytest

from evonorm_runs.errors import UserError
from evonorm_search import rerank
from evonorm_search.config import load_config
from evonorm_search.space import Space, formula
from evonorm_search.store import Candidate, Store
from evonorm_search.table import SHARED, read_table, summary, write_table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/results/search.md"
PUBLISHED = ROOT / "docs/results/search.jsonl.gz"


def write_search(folder, seed, *overrides):
    """A store of 60 candidates as a search writes it. A child is better than its parent."""
    folder.mkdir(parents=True)
    cfg = load_config(str(ROOT / "configs/search/small_s.yaml"), ["SEED", str(seed), *overrides])
    store, rng, space = Store(folder), random.Random(seed), Space(batch=False)
    store.set("config", cfg.dump())
    means = {}
    for key in range(60):
        graph, parent = space.random(rng), rng.choice([None, *means])
        result = {
            "stage": "quality",
            "quality": [0.1],
            "worst": [],
            "scores": [],
            "curves": [[2.3]],
        }
        if key % 4 == 0:
            means[key] = min(0.98, means.get(parent, 0.3) + 0.05)
            scores = [means[key] - 0.01, means[key], means[key] + 0.01]
            result |= {"stage": "trained", "scores": scores, "curves": [[2.3, None, 0.5]] * 3}
        row = Candidate(key, graph, str(formula(graph)), bytes([key]), key, parent)
        store.add(row, {**result, "seconds": 36.0})
    store.add(Candidate(99, graph, "x", b"", 60, None, 56), {**result, "seconds": 1.0})
    return folder


@pytest.fixture
def searches(tmp_path):
    other = ("EVOLUTION.RANDOM_CHILDREN", "1.0", "SPACE.BATCH", "True")
    return [write_search(tmp_path / "a", 1), write_search(tmp_path / "b", 2, *other)]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_the_table_has_all_that_the_stores_have(searches, tmp_path, name):
    out = tmp_path / name
    write_table(searches, out)
    rows = read_table(out)
    assert [row["search"] for row in rows] == ["a"] * 61 + ["b"] * 61
    for row, (candidate, result) in zip(rows, Store(searches[0]).candidates()):
        assert row["graph"] == [[op, list(of)] for op, of in candidate.graph]
        assert bytes.fromhex(row["fingerprint"]) == candidate.fingerprint
        names = ("key", "formula", "drawn_after", "parent", "same_as")
        assert all(row[name] == getattr(candidate, name) for name in names)
        shared = candidate.same_as is not None
        assert {k for k in result if k in row} == set(SHARED if shared else result)
        assert all(row[key] == result[key] for key in SHARED)
    assert rows[0]["seed"] == 1 and rows[-1]["batch"] is True
    assert rows[0]["anchors"] == ["MobileNetV2-small", "EfficientNet-small", "ResNet-small"]
    if name.endswith(".gz"):
        again = tmp_path / "u.jsonl.gz"
        write_table(searches, again)
        assert again.read_bytes() == out.read_bytes()
        assert gzip.decompress(out.read_bytes()).count(b"\n") == 122


def test_bad_input_is_one_line_and_leaves_no_file(searches, tmp_path):
    (tmp_path / "old.jsonl").write_text("kept")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="old.jsonl: File exists"):
        write_table(searches, tmp_path / "old.jsonl")
    with pytest.raises(UserError, match="empty: not the folder of a search"):
        write_table([*searches, tmp_path / "empty"], tmp_path / "new.jsonl.gz")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"not packed")
    for name in ("bad.jsonl.gz", "old.jsonl", "none.jsonl"):
        with pytest.raises(UserError, match=name):
            read_table(tmp_path / name)
    assert (tmp_path / "old.jsonl").read_text() == "kept"
    assert not list(tmp_path.glob("new*"))


def test_a_summary(searches, tmp_path):
    write_table(searches, tmp_path / "t.jsonl")
    head, _, first, second = summary(read_table(tmp_path / "t.jsonl")).splitlines()
    best = max(sum(r["scores"]) / 3 for _, r in Store(searches[0]).candidates() if r["scores"])
    evolution = ["a", "S", "1", "pareto, 0.5 random", "61", "60", "45", "0", "15", "0.6"]
    assert first.strip("| ").split(" | ") == [*evolution, f"{100 * best:.1f}"]
    assert second.strip("| ").split(" | ")[:4] == ["b", "B", "2", "random"]
    assert head.count("|") == first.count("|")


def test_the_pages_example_on_a_made_table(searches, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "docs/results").mkdir(parents=True)
    write_table(searches, tmp_path / "docs/results" / PUBLISHED.name)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
    random_, evolution = (
        float(re.search(r"([\d.]+) % after 200", line)[1])
        for line in capsys.readouterr().out.splitlines()
    )
    best = max(
        sum(r["scores"]) / 3 for s in searches for _, r in Store(s).candidates() if r["scores"]
    )
    # Random search only finds what has no parent. In this table children are better.
    assert random_ == pytest.approx(35.0) and 45 < evolution <= 100 * best


def test_the_page_has_the_table_of_the_published_final_test():
    trainings = read_table(PAGE.parent / "rerank.jsonl")
    final = {job_of(line): line["accuracy"] for line in trainings if line["part"] == "test"}
    shown = re.search(r"start:test\] -->\n(.*?)\n<!--", PAGE.read_text(), re.DOTALL)[1]
    assert shown == rerank.table(rerank.summary(final))
    assert {job.seed for job in final}.isdisjoint({line["seed"] for line in trainings[:9]})


def job_of(line):
    return rerank.Job(*(line[key] for key in rerank.Job._fields))


def test_the_layers_of_the_final_test_are_the_best_of_the_reranking():
    trainings = read_table(PAGE.parent / "rerank.jsonl")
    found = {line["norm_act"] for line in trainings if line["part"] == "test"} - {*rerank.KNOWN}
    for search in ("evolution_s", "evolution_b"):
        own = (x for x in trainings if x["part"] == "val" and x["search"] == search)
        rows = rerank.summary({job_of(line): line["accuracy"] for line in own})
        assert {row.norm_act for row in rows[: rerank.WINNERS]} <= found


def test_the_page_has_the_columns_and_the_summary_of_the_published_table(searches, tmp_path):
    text = PAGE.read_text()
    columns = text.partition("## Columns")[2].partition("## Replay")[0]
    named = [
        name
        for cell in re.findall(r"^\| (`.*?) \|", columns, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    ]
    write_table(searches, tmp_path / "t.jsonl")
    assert sorted(named) == sorted(read_table(tmp_path / "t.jsonl")[0])
    shown = re.search(r"start:summary\] -->\n(.*?)\n<!--", text, re.DOTALL)[1]
    if PUBLISHED.exists():
        table = read_table(PUBLISHED)
        assert shown == summary(table) and set(named) == set(table[0])
    else:
        assert not re.search(r"\d", shown), "figures of a table that is not there"
