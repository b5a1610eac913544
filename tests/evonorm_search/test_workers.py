"""The processes and Ray tasks that evaluate: what is lost is told apart, and all of them end."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from evonorm_runs.errors import UserError
from evonorm_search.config import load_config
from evonorm_search.search import run
from evonorm_search.workers import OnRay, Processes

PATIENCE = 300  # seconds: a busy machine starts a process slowly
ROOT = Path(__file__).parents[2]
SHORT = (
    "DEVICE cpu CANDIDATES 3 PROXY.STEPS 2 PROXY.QUALITY_STEPS 1 PROXY.QUALITY 0.0 "
    "PROXY.STABILITY_STEPS 1 ANCHORS ('Tiny',)"
).split()


@pytest.fixture
def answers(importable):
    import answers

    return answers


def check(workers):
    """One process is killed while another works, and a third candidate is bad."""
    futures = {text: workers.submit(text) for text in ("once", "a")}
    assert futures["a"].result(PATIENCE)["text"] == "a"
    error = futures["once"].exception(PATIENCE)
    assert workers.lost(error) and not isinstance(error, UserError)
    assert workers.submit("once").result(PATIENCE)["text"] == "once"
    error = workers.submit("bad").exception(PATIENCE)
    assert not workers.lost(error) and isinstance(error, UserError)
    assert "a bad candidate" in str(error)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def wait_for(what, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_processes(answers, tmp_path):
    workers = Processes(partial(answers.answer, tmp_path), 2)
    assert workers.room == 2
    check(workers)
    one = workers.submit("long")
    wait_for(lambda: (tmp_path / "long").exists() and (tmp_path / "long").read_text())
    workers.close()  # which does not wait for it
    assert workers.lost(one.exception(PATIENCE))
    wait_for(lambda: gone(int((tmp_path / "long").read_text())))


@pytest.mark.slow
def test_processes_end_with_a_driver_that_is_killed(answers, tmp_path):
    code = (
        "import sys\n"
        "from functools import partial\nfrom pathlib import Path\nimport time\n"
        "import answers\nfrom evonorm_search.workers import Processes\n"
        "if __name__ == '__main__':\n"
        "    workers = Processes(partial(answers.answer, Path(sys.argv[1])), 1)\n"
        "    workers.submit('long')\n    time.sleep(300)\n"
    )
    (tmp_path / "driver.py").write_text(code)
    driver = subprocess.Popen([sys.executable, str(tmp_path / "driver.py"), str(tmp_path)])
    wait_for(lambda: (tmp_path / "long").exists() and (tmp_path / "long").read_text())
    driver.kill()
    driver.wait()
    wait_for(lambda: gone(int((tmp_path / "long").read_text())))


@pytest.mark.slow
def test_ray(answers, own, tmp_path):
    """Tasks, a process that is killed among them, and a whole search."""
    pytest.importorskip("ray", reason="Ray is not installed")
    workers = OnRay(partial(answers.answer, tmp_path), "local")
    try:
        assert workers.room >= 1
        check(workers)
        pids = {workers.submit("a").result(PATIENCE)["pid"] for _ in range(4)}
        assert len(pids) < 4  # a process serves several candidates
    finally:
        workers.close()

    settings = [*SHORT, "SPACE.OWN", "('softsign',)", "OUTPUT_DIR", str(tmp_path / "run")]
    store = run(
        load_config(str(ROOT / "configs/search/small_s.yaml"), settings), ray_address="local"
    )
    trained = [c for c, result in store.candidates() if c.same_as is None and result["scores"]]
    assert len(trained) == 3


def test_no_ray_cluster_is_one_line(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(UserError, match=r"^--ray 127\.0\.0\.1:1: .*refused$"):
        OnRay(print, "127.0.0.1:1")
