"""Folders that are damaged, hostile or oddly named."""

from __future__ import annotations

import os

import pytest

from evonorm_repro.report import write_report
from evonorm_repro.report.reading import find_runs, read_config, read_runs
from evonorm_runs.errors import UserError

GOOD = '{"step": 1, "loss_d": 2.5}\n'
# A line of metrics.json, and whether it is damaged.
LINES = [
    ("", False),
    ('{"step": 2, "loss_d": 1.5', True),
    ("\x00\x00", True),
    ("[1, 2]", True),
    ('"step"', True),
    ("null", True),
    ('{"loss_d": 1.0}', True),
    ('{"step": "2", "loss_d": 1.0}', True),
    ('{"step": true, "loss_d": 1.0}', True),
    ('{"step": NaN, "loss_d": 1.0}', True),
    ('{"step": 1e999, "loss_d": 1.0}', True),
    ('{"step": ' + "9" * 400 + ', "loss_d": 1.0}', True),
    ('{"step": ' + "9" * 5000 + ', "loss_d": 1.0}', True),
    ("[" * 100_000, True),
    ('{"step": 2, "loss_d": NaN}', False),
    ('{"step": 2, "loss_d": Infinity}', False),
    ('{"step": 2, "loss_d": ' + "9" * 400 + "}", False),
    ('{"step": 2, "loss_d": "text", "other": [1], "null": null}', False),
]


@pytest.fixture
def run(tmp_path, write_run):
    """run(name, **values): a folder with one good line of figures."""

    def make(name, **values):
        return write_run(tmp_path / name, [(1, values or {"loss_d": 2.5})])

    return make


@pytest.mark.parametrize("line, damaged", LINES)
def test_a_damaged_line_is_left_out_and_counted(run, report, line, damaged):
    folder = run("a")
    (folder / "metrics.json").write_bytes((GOOD + line + "\n").encode() + GOOD[:-4].encode())
    page = report(folder)
    note = f"metrics.json: {1 + damaged} damaged line{'s' * damaged} left out"
    assert note in page.table("Runs")[1][4]


def test_a_generator_whose_images_look_alike_is_noted(tmp_path, report, gan_run):
    few, many = {"precision": 0.7, "recall": 0.01}, {"precision": 0.7, "recall": 0.3}
    # The last evaluation counts.
    a = gan_run(tmp_path / "a", [(10, many), (20, few)])
    b = gan_run(tmp_path / "b", [(10, few), (20, many)])
    _, first, second = report(a, b).table("Runs")
    assert "the images of a class look alike" in first[4] and "alike" not in second[4]


def test_bytes_that_are_no_text(run, report):
    folder = run("a")
    (folder / "metrics.json").write_bytes(b"\xff\xfe{}\n" + GOOD.encode())
    assert "1 damaged line left out" in report(folder).said


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{after}: &{after} [{', '.join(['*' + before] * 9)}]\n"
    for before, after in zip("abcdefghi", "bcdefghij")
)


@pytest.mark.parametrize(
    "text, reason",
    [
        (BOMB, "more than 20000 values"),
        ("a: &a [*a]", "more than 20000 values"),
        ("a: " + "[" * 3000, "recursion"),
        ("a: !!python/object/apply:os.system ['touch {}/pwned']", "could not determine a constr"),
        ("- a\n- b\n", "not a config"),
        ("a: [", "expected"),
        ("a: \x01", "not allowed"),
    ],
)
def test_a_config_that_can_not_be_read_is_noted(run, report, tmp_path, text, reason):
    folder = run("a")
    (folder / "config.yaml").write_text(text.replace("{}", str(tmp_path)))
    state = report(folder).table("Runs")[1][4]
    assert "config.yaml can't be read: " in state and reason in state
    assert not (tmp_path / "pwned").exists()


def test_values_of_configs():
    text = b"A: {B: 1.0e-3, C: {D: [1, x]}, E: {}, F: null}\nG: !!binary aGk=\n2: yes\n"
    assert read_config(text) == {
        **{"A.B": "0.001", "A.C.D": "[1, 'x']", "A.E": "{}", "A.F": "None"},
        **{"G": "b'hi'", "2": "True"},
    }
    assert len(read_config(b"A: " + b"x" * 5000)["A"]) < 400


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": 3}', '{"seconds": "x"}'])
def test_odd_records_of_a_grid(run, report, text):
    folder = run("a")
    (folder / "job.json").write_text(text)
    assert "at step 1" in report(folder).table("Runs")[1][4]


def test_a_grid_tells_that_a_run_has_ended(run, report):
    folder = run("a")
    (folder / "job.json").write_text('{"settings": ["t", "c"], "seconds": 90.0}')
    page = report(folder)
    assert page.table("Runs")[1][4] == "finished at step 1"
    assert page.table("Speed")[1] == ["a", "1.5"]


@pytest.mark.parametrize(
    "text, reason",
    [("", "no reason given"), ("first\nsecond", "first"), ("x" * 9999, "x" * 600)],
)
def test_reasons_of_failures(run, report, text, reason):
    folder = run("a")
    (folder / "failed.txt").write_text(text)
    assert report(folder).table("Runs")[1][4] == f"failed at step 1: {reason}"


@pytest.mark.parametrize(
    "name, content",
    [
        ("curve.json", '{"curve": 3}'),
        ("curve.json", '{"curve": [3]}'),
        ("curve.json", '{"curve": [{"truncation": [], "FID": "x", "IS": null}]}'),
        ("curve.json", "[" * 100_000),
        ("log.txt", "Environment info:\n"),
        ("log.txt", "Environment info:\n----  ----\nPython  3"),
        ("confusion.json", '{"classes": ["a"], "counts": [[0, 1, 2]]}'),
        ("confusion.json", '{"classes": ["a"], "counts": [[0, 0, -2]]}'),
        ("confusion.json", '{"classes": ["a"], "counts": [[0, []]]}'),
        ("predictions.png", "not a picture"),
    ],
)
def test_other_damaged_files(run, report, name, content):
    folder = run("a")
    (folder / name).write_text(content)
    page = report(folder)
    assert ("predictions.png: can't be read" in page.said) == (name == "predictions.png")


@pytest.mark.parametrize(
    "table",
    [
        *("{", "[]", "{}", '{"columns": ["a"], "rows": [["1", "2"]]}'),
        *(
            '{"columns": ["a"], "rows": ["1"]}',
            '{"columns": ["a"], "rows": [["1"]], "paper": {"rows": 3}}',
        ),
    ],
)
def test_a_table_that_is_none_is_noted(run, report, tmp_path, table):
    run("a")
    (tmp_path / "table.json").write_text(table)
    assert f"{tmp_path}/table.json is not a table of a reproduction" in report(tmp_path).said


@pytest.mark.parametrize("kind", ["folder", "fifo", "link to nothing"])
@pytest.mark.parametrize("name", ["metrics.json", "config.yaml", "job.json", "failed.txt", "x.png"])
def test_what_is_no_file_is_noted_and_nothing_hangs(run, report, name, kind):
    healthy, folder = run("b"), run("a")
    (folder / "config.yaml").write_text("SEED: 3")
    (folder / name).unlink(missing_ok=True)
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "fifo":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(folder / "nowhere")
    page = report(folder, healthy)
    assert len(page.table("Runs")) == 3
    if name.endswith(("json", "yaml")) and kind != "link to nothing":
        assert f"{name} can't be read: not a regular file" in page.said


def test_a_folder_that_may_not_be_read_is_named(run, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    folder = run("a")
    monkeypatch.setattr(os, "listdir", forbidden)
    with pytest.raises(UserError, match=f"Permission denied: '{folder}'"):
        read_runs([folder])


def test_runs_are_found_below_folders_and_named_apart(run, tmp_path):
    for name in ("x/GN", "y/GN", "y/deep/er/S0", "y/.hidden/no", "x/GN/inner"):
        run(name)
    (tmp_path / "x/link").symlink_to(tmp_path / "x/GN")
    found = read_runs([tmp_path, tmp_path / "x/GN", tmp_path / "x/link"])
    assert [r.name for r in found] == ["x/GN", "y/GN", "y/deep/er/S0"]
    assert [r.index for r in found] == [0, 1, 2]
    assert [r.name for r in read_runs([tmp_path / "y"])] == ["GN", "S0"]


def test_runs_are_ordered_by_their_kind(run, tmp_path):
    for name, key in (("a", "loss_d"), ("b", "total_loss"), ("c", "other"), ("d", "loss_d")):
        run(name, **{key: 1})
    assert [(r.name, r.kind.id) for r in read_runs([tmp_path])] == [
        *(("b", "detection"), ("a", "gan"), ("d", "gan"), ("c", "other"))
    ]


def test_bad_folders_and_outputs(run, tmp_path):
    folder = run("runs/a")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("file", "is not a folder"),
        ("none", "does not exist"),
        ("empty", "no runs found in"),
    ):
        with pytest.raises(UserError, match=message):
            find_runs([folder, tmp_path / path])
    for out, message in ((tmp_path, "is a folder"), (tmp_path / "no/r.html", "there is no folder")):
        with pytest.raises(UserError, match=message):
            write_report([folder], out)


def test_the_old_report_stays_until_the_new_one_is_whole(run, tmp_path, monkeypatch):
    out = tmp_path / "report.html"
    out.write_text("old")
    with pytest.raises(UserError):
        write_report([tmp_path / "none"], out)
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UserError, match="disk full"):
        write_report([run("a")], out)
    assert out.read_text() == "old"
    monkeypatch.undo()
    write_report([tmp_path / "a"], out)
    assert out.read_text().startswith("<!doctype html>")
