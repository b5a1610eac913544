"""A run's folder, its metrics, and the flags of a training process."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fvcore.common.config import CfgNode

from evonorm_classifier.config import get_cfg as get_classifier_cfg
from evonorm_gan.config import get_cfg as get_gan_cfg
from evonorm_runs import stop
from evonorm_runs.command_line import run_tool
from evonorm_runs.distributed import process_flags
from evonorm_runs.errors import UserError
from evonorm_runs.files import read_checkpoint
from evonorm_runs.folder import claimed, keep_lines, read_metrics, write_start
from evonorm_runs.log import Log
from evonorm_runs.pool import over_all
from evonorm_runs.random_state import mix
from evonorm_search.config import get_cfg as get_search_cfg


def test_damaged_lines_are_counted_and_left_out(tmp_path):
    whole = b'{"step": 1, "loss": 2.5}\n\n{"step": 2, "loss": NaN}\n'
    damaged = b'[1, 2]\n"text"\n3\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"step": 3, "lo'
    (tmp_path / "metrics.json").write_bytes(whole + damaged)
    lines, count = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2] and count == 6
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "absent")


def claim(folder, resume=False):
    with claimed(str(folder), ["*.pth"], resume):
        return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    folder = tmp_path / "a" / "b"
    assert claim(folder) == claim(folder, resume=True) == ["run.lock"]
    assert not list(folder.iterdir())
    for name in ("config.yaml", "metrics.json", "model_1.pth"):
        (folder / name).write_text("3")
        with pytest.raises(UserError, match=f"{folder} holds a run .*: continue it with --resume"):
            claim(folder)
        assert [path.name for path in folder.iterdir()] == [name]
        assert claim(folder, resume=True) == sorted([name, "run.lock"])
        (folder / name).unlink()
    (folder / "file").touch()
    with pytest.raises(UserError, match="^OUTPUT_DIR: "):
        claim(folder / "file" / "c")
    with pytest.raises(UserError, match="^OUTPUT_DIR is empty"), claimed(" ", [], False):
        pass


def test_a_start_that_failed_does_not_block_the_next(tmp_path):
    """Its config names the folder; a user's own, or one of another run, does not."""
    config = tmp_path / "config.yaml"
    config.write_text(f"OUTPUT_DIR: {tmp_path}\nSEED: 1\n")
    assert claim(tmp_path) == ["config.yaml", "run.lock"]
    for text in ("OUTPUT_DIR: elsewhere\n", "- a list\n", "SEED: 1\n", "a: [\n"):
        config.write_text(text)
        with pytest.raises(UserError, match=r"holds a run \(config.yaml\)"):
            claim(tmp_path)
        assert config.read_text() == text


def test_a_run_of_another_tool_is_not_gone_on_with(tmp_path):
    gan = get_gan_cfg()
    for cfg in (gan, get_classifier_cfg(), get_search_cfg()):
        (tmp_path / "config.yaml").write_text(cfg.dump())
        for other in (gan, get_classifier_cfg(), get_search_cfg()):
            if other.keys() == cfg.keys():
                with claimed(str(tmp_path), ["*.pth"], True, other):
                    continue
            with pytest.raises(UserError, match="holds a run of another tool"):
                with claimed(str(tmp_path), ["*.pth"], True, other):
                    pass
    (tmp_path / "config.yaml").write_text("MODEL: {NORM: GN-ReLU}\n")  # of an earlier version
    with claimed(str(tmp_path), ["*.pth"], True, gan):
        pass


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    (tmp_path / "model_1.pth.123.partial").touch()
    assert claim(tmp_path) == ["run.lock"]


HOLD = """
import sys
from evonorm_runs.folder import claimed
with claimed(sys.argv[1], [], False):
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_two_processes_can_not_have_one_folder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as owner:
        assert owner.stdout.readline() == "claimed\n"
        line = f"OUTPUT_DIR {tmp_path}: process {owner.pid} on .* is at work in it; wait"
        for resume in (False, True):
            with pytest.raises(UserError, match=line):
                claim(tmp_path, resume)
        owner.kill()
    assert claim(tmp_path) == ["run.lock"]  # the lock went with its owner


def test_lines_that_come_again_are_removed(tmp_path):
    file = tmp_path / "metrics.json"
    file.write_bytes(b'{"step": 1}\n{"step": 3}\n{"step": 2}\n{"st')
    kept, dropped = keep_lines(tmp_path, lambda line: line["step"] <= 2)
    assert (kept, dropped) == ([{"step": 1}, {"step": 2}], 2)
    assert file.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert keep_lines(tmp_path / "absent", bool) == ([], 0)


@pytest.mark.parametrize("step", ["1", None, [1], {}])
def test_a_line_of_no_step_is_removed(tmp_path, step):
    file = tmp_path / "metrics.json"
    file.write_text(
        '{"step": 1, "FID": 3.0}\n' + json.dumps({"step": step, "FID": 1.0}) + "\n[3]\n"
    )
    log = Log(tmp_path, 2)
    assert log.lines == [{"step": 1, "FID": 3.0}] == log.with_key("FID")
    log.close()
    assert file.read_text() == '{"step": 1, "FID": 3.0}\n'


def test_metrics_that_are_no_file_are_named(tmp_path):
    os.mkfifo(tmp_path / "metrics.json")
    with pytest.raises(UserError, match="metrics.json is not a file"):
        Log(tmp_path, 0)


def test_an_error_obeys_no_terminal(capsys):
    @run_tool("tool.py")
    def main():
        raise UserError("ü: no class '\x1b[2Jcat\x07'")

    assert main() == 2
    assert capsys.readouterr().err == "tool.py: ü: no class '\\x1b[2Jcat\\x07'\n"


def test_a_start_is_written_down(tmp_path):
    cfg = CfgNode({"OUTPUT_DIR": str(tmp_path), "SEED": 3})
    for step in (0, 7):
        write_start(cfg, step)
    assert CfgNode.load_cfg((tmp_path / "config.yaml").read_text()) == cfg
    starts = [json.loads(line) for line in (tmp_path / "starts.json").read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 7]
    assert starts[0]["versions"]["torch"] == torch.__version__
    assert starts[0]["processes"] == 1 and starts[0]["host"] == platform.node()
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        head = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        assert starts[0]["commit"].rstrip("+") == head


def test_a_flipped_bit_is_noticed(tmp_path):
    """Anywhere in the values of a checkpoint, where PyTorch itself loads it without a word."""
    path = tmp_path / "a.pth"
    torch.save({"weight": torch.arange(1000.0)}, path)
    whole = path.read_bytes()
    start = whole.index(torch.arange(1000.0).numpy().tobytes())
    for place in (start, start + 1234, start + 3999):
        broken = bytearray(whole)
        broken[place] ^= 4
        path.write_bytes(broken)
        assert not torch.equal(torch.load(path)["weight"], torch.arange(1000.0))
        with pytest.raises(UserError, match=f"{path}: damaged: its part .* its checksum"):
            read_checkpoint(path)
    path.write_bytes(whole)
    assert torch.equal(read_checkpoint(path)["weight"], torch.arange(1000.0))


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from evonorm_runs.checkpoint import write_checkpoint
from evonorm_runs.command_line import run_tool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # a write beyond it fails
@run_tool("tool.py")
def main():
    write_checkpoint(Path(sys.argv[1]), {"weight": torch.randn(100_000)})
sys.exit(main())
"""


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"before")
    command = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    why = "File too large; all other files are kept"
    assert done.stderr == f"tool.py: {path} can't be written: {why}\n"
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]
    assert path.read_bytes() == b"before"


STOP = """
import os, signal
from evonorm_classifier.config import get_cfg as get_classifier_cfg
from evonorm_gan.config import get_cfg as get_gan_cfg
from evonorm_runs import stop
from evonorm_runs.command_line import run_tool
@run_tool("tool.py")
@stop.on_sigterm()
def main():
    assert not stop.asked()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.asked()
    if TWICE:
        os.kill(os.getpid(), signal.SIGTERM)
    raise stop.Stopped("stopped after step 3")
raise SystemExit(main())
"""


@pytest.mark.parametrize("twice, status", [(False, 143), (True, -signal.SIGTERM)])
def test_sigterm(twice, status):
    command = [sys.executable, "-c", STOP.replace("TWICE", str(twice))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status
    assert done.stderr == ("" if twice else "tool.py: stopped after step 3\n")
    handler = signal.getsignal(signal.SIGTERM)
    with stop.on_sigterm():
        assert signal.getsignal(signal.SIGTERM) != handler
    assert signal.getsignal(signal.SIGTERM) == handler


def flags():
    denormal = torch.tensor([2.0**-1074], dtype=torch.float64) * 1.0
    return denormal.item() == 0, torch.backends.cudnn.benchmark


@pytest.mark.parametrize("flushed", [False, True])
def test_the_flags_of_a_training_end_with_it(flushed):
    torch.set_flush_denormal(flushed)
    before = flags()

    @process_flags()
    def train():
        assert flags() == (True, True)
        raise KeyError

    try:
        for _ in range(2):
            with pytest.raises(KeyError):
                train()
            assert flags() == before == (flushed, False)
    finally:
        torch.set_flush_denormal(False)


def test_nearby_parts_give_unrelated_seeds():
    seeds = {mix(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900 and 0 <= min(seeds) and 2**60 < max(seeds) < 2**64


def test_a_pool_calls_a_function_with_each_input():
    found = dict(over_all(lambda x, environment: (x * x, environment), range(5), at_once=2))
    assert {x: result for x, (result, _) in found.items()} == {x: x * x for x in range(5)}
    assert all(set(environment) == {"OMP_NUM_THREADS"} for _, environment in found.values())
