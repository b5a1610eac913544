"""tools/report.py's command line."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"step": 1, "loss": 2.0}\n')
    return folder


def test_a_report_is_written_and_replaced(call, run, tmp_path):
    status, out, err = call(run)
    assert (status, err) == (0, "") and out.startswith("report.html: ")
    assert "<title>Run a" in (tmp_path / "report.html").read_text()
    other = tmp_path / "runs" / "b"
    run.rename(other)
    assert call("runs", "-o", "report.html")[0] == 0
    assert "<title>Run b" in (tmp_path / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["none"], "none does not exist"),
        (["runs/a/metrics.json"], "runs/a/metrics.json is not a folder"),
        (["empty"], "no runs found in empty"),
        (["runs", "empty"], "no runs found in empty"),
        (["runs", "-o", "empty"], "empty is a folder"),
        (["runs", "-o", "no/r.html"], "there is no folder no"),
        (["runs", "-o", "x" * 300], "File name too long"),
    ],
)
def test_bad_input_is_one_line(call, run, tmp_path, arguments, reason):
    (tmp_path / "empty").mkdir()
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("report.py: ") and reason in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "runs"]
