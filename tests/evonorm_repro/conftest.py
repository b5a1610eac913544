"""A training tool of a few lines, to test grids of runs with."""

from __future__ import annotations

import pytest

from evonorm_repro.grid import Job

# Counts its calls; SCORE comes out as it went in; FAIL_UNTIL n fails, or is killed, n times.
TOOL = """
import json, os, signal, sys
args = sys.argv[sys.argv.index("--resume") + 1:]
cfg = dict(zip(args[::2], args[1::2]))
os.makedirs(cfg["OUTPUT_DIR"], exist_ok=True)
with open(cfg["OUTPUT_DIR"] + "/calls", "a") as file:
    print(os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES"), file=file)
calls = len(open(cfg["OUTPUT_DIR"] + "/calls").readlines())
if calls <= int(cfg.get("FAIL_UNTIL", 0)):
    print("Traceback, and then", file=sys.stderr)
    if "KILL" in cfg:
        os.kill(os.getpid(), signal.SIGKILL)
    print("tool.py: the loss is nan", file=sys.stderr)
    sys.exit(2)
score = eval(cfg.get("SCORE", "0"), cfg)
json.dump({"score": score}, open(cfg["OUTPUT_DIR"] + "/metrics.json", "w"))
"""


@pytest.fixture(scope="session")
def tool(tmp_path_factory):
    """The tool's path."""
    path = tmp_path_factory.mktemp("tool") / "tool.py"
    path.write_text(TOOL)
    return str(path)


@pytest.fixture
def job(tool, tmp_path):
    """job(name, KEY=value, ...): a run of the tool."""

    def make(name, **settings):
        pairs = [str(x) for pair in settings.items() for x in pair]
        return Job(tmp_path / name, tool, "none.yaml", tuple(pairs))

    return make
