"""Runs end once, fail alone, and go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from evonorm_runs.errors import UserError
from evonorm_runs.grid import ROOT, Job, failure, finished, run_jobs


def calls(job):
    return (job.folder / "calls").read_text().splitlines()


def test_a_finished_run_is_not_run_again(job, capsys):
    jobs = [job("a"), job("b")]
    run_jobs(jobs)
    run_jobs(jobs)
    assert all(finished(job) and len(calls(job)) == 1 for job in jobs)
    assert capsys.readouterr().out.count("done") == 2


def test_a_failed_run_tells_why_and_leaves_the_others_alone(job, capsys):
    jobs = [job("bad", FAIL_UNTIL=1), job("killed", FAIL_UNTIL=1, KILL=1), job("good")]
    run_jobs(jobs)
    assert [finished(job) for job in jobs] == [False, False, True]
    assert [failure(job) for job in jobs] == [
        "tool.py: the loss is nan",
        "killed by SIGKILL",
        None,
    ]
    assert "bad: FAILED: tool.py: the loss is nan" in capsys.readouterr().out
    run_jobs(jobs)  # tried again
    assert [len(calls(job)) for job in jobs] == [2, 2, 1]
    assert all(finished(job) and failure(job) is None for job in jobs)


def test_a_folder_of_other_settings_is_refused_and_left_alone(job):
    run_jobs([job("a", SCORE=1)])
    with pytest.raises(
        UserError, match=r"a holds a run of other settings \(has SCORE 1, not SCORE 2\): n"
    ):
        run_jobs([job("b"), job("a", SCORE=2)])
    assert len(calls(job("a"))) == 1
    assert not job("b").folder.exists()


def test_several_at_once_share_the_cores_and_have_their_own_gpus(job, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    jobs = [job(f"run{i}", SCORE="__import__('time').sleep(0.3)") for i in range(4)]
    run_jobs(jobs, at_once=2, gpus=2)
    assert {line for job in jobs for line in calls(job)} == {"3 0,1", "3 2,3"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")  # the others are somebody else's
    jobs = [job(f"again{i}", SCORE="__import__('time').sleep(0.3)") for i in range(2)]
    run_jobs(jobs, at_once=2, gpus=1)
    assert {line for job in jobs for line in calls(job)} == {"3 6", "3 7"}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"settings": 3}'])
def test_a_damaged_record_is_one_line(job, text):
    a = job("a")
    a.folder.mkdir()
    (a.folder / "job.json").write_text(text)
    with pytest.raises(UserError, match="job.json is damaged: "):
        run_jobs([a])


def test_the_reason_is_the_tools_own_line(job, capsys):
    a = job("a", FAIL_UNTIL=1)
    printed = "print('train_gan.py: no such folder: data\\n' + '=' * 60, flush=True)"
    a = Job(a.folder, a.tool, a.config, (*a.settings, "SCORE", f"{printed} or 1 / 0"))
    run_jobs([a, a])  # the first ends by FAIL_UNTIL, the second after torchrun's kind of report
    assert failure(a) == "train_gan.py: no such folder: data"


def test_the_time_of_an_interrupted_run_is_not_known(job):
    a = job("a", FAIL_UNTIL=1)
    run_jobs([a])
    run_jobs([a])
    assert json.loads((a.folder / "job.json").read_text())["seconds"] is None


def test_a_folder_at_work_is_left_alone(job, capsys):
    a = job("a", SCORE="__import__('time').sleep(2)")
    code = f"from evonorm_runs.grid import *; run_jobs([{a!r}])".replace("PosixPath", "Path")
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while not (a.folder / "calls").exists():
        time.sleep(0.05)
    other.kill()  # its run goes on as an orphan
    other.wait()
    run_jobs([a])
    assert "another process is still at work" in capsys.readouterr().out
    assert len(calls(a)) == 1
    for _ in range(100):  # until the orphan has ended
        run_jobs([a])
        if finished(a):
            break
        time.sleep(0.1)
    assert finished(a) and len(calls(a)) == 2


@pytest.mark.parametrize(
    ("tool", "gpus", "first"),
    [
        ("tools/train_net.py", 8, [str(ROOT / "tools/train_net.py")]),
        ("tools/train_gan.py", 1, [str(ROOT / "tools/train_gan.py")]),
        ("tools/search_layers.py", 1, [str(ROOT / "tools/search_layers.py"), "run"]),
        ("tools/train_gan.py", 8, ["-m", "torch.distributed.run", "--standalone"]),
    ],
)
def test_each_tool_is_launched_in_its_own_way(tmp_path, tool, gpus, first):
    command = Job(tmp_path, tool, "configs/x.yaml", ("SEED", "3")).command(gpus)
    assert command[: len(first)] == first
    assert command[-4:] == ["SEED", "3", "OUTPUT_DIR", str(tmp_path)]
    assert "--resume" in command
    assert ("--dist-url" in command) == ("--num-gpus" in command)
    assert ("--num-gpus" in command) == (tool == "tools/train_net.py" and gpus > 1)
    assert (ROOT / tool).is_file()


@pytest.mark.slow
def test_on_a_ray_cluster(job, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    jobs = [job("a"), job("bad", FAIL_UNTIL=1), job("b")]
    lines = []
    run_jobs(jobs, ray_address="local", say=lines.append)
    assert [finished(job) for job in jobs] == [True, False, True]
    assert failure(jobs[1]) == "tool.py: the loss is nan"
    assert len(lines) == 4


def test_no_ray_cluster_is_one_line(job):
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(UserError, match=r"--ray 127\.0\.0\.1:1: "):
        run_jobs([job("a")], ray_address="127.0.0.1:1")
