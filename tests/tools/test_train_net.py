"""tools/train_net.py, run as a user runs it, on a data set and a detector of seconds."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import train_net as tool

from evonorm_d2.data import register_digits

TOOL = Path(__file__).parents[2] / "tools" / "train_net.py"


@pytest.fixture(scope="module")
def command(digits_root, tiny_run):
    """command(norm, *KEY VALUE, flags=...): the command line and the environment to run it in."""

    def build(norm, *overrides, flags=(), root=digits_root):
        file, values = tiny_run(norm, "DATALOADER.NUM_WORKERS", 1, *overrides)
        environment = {**os.environ, "DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"}
        return [sys.executable, str(TOOL), "--config-file", file, *flags, *values], environment

    return build


def run(command, environment, status=0):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == status, done.stderr
    return done


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


@pytest.fixture(scope="module")
def killed(command, tmp_path_factory):
    """A run killed by SIGKILL after at least four steps; returns its folder and checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    arguments, environment = command("EvoNormB0", "OUTPUT_DIR", folder, "SOLVER.MAX_ITER", 10**6)
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (folder / "model_0000003.pth").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    tag = (folder / "last_checkpoint").read_text()
    torch.load(folder / tag, weights_only=True)  # is whole
    return folder, int(re.fullmatch(r"model_(\d+)\.pth", tag)[1])


@pytest.fixture(scope="module")
def resumed(command, killed):
    """The same run, continued to three steps after its checkpoint and evaluated."""
    folder, last = killed
    total = last + 1 + 3
    settings = ("OUTPUT_DIR", folder, "SOLVER.MAX_ITER", total)
    return folder, last, total, run(*command("EvoNormB0", *settings, flags=["--resume"]))


@pytest.mark.slow
class TestTraining:
    def test_goes_on_after_the_last_checkpoint(self, resumed):
        folder, last, total, done = resumed
        assert f"Starting training from iteration {last + 1}\n" in done.stdout
        state = torch.load(folder / "model_final.pth", weights_only=True)
        assert state["iteration"] == total - 1
        assert (folder / "last_checkpoint").read_text() == "model_final.pth"
        assert not list(folder.glob("*.partial"))

    def test_prints_progress_and_results(self, resumed):
        folder, _, total, done = resumed
        assert re.search(rf"eta: 0:00:00  iter: {total - 1}  total_loss: \d", done.stdout)
        result = lines(folder)[-1]
        ap = f"box AP {result['bbox/AP']:.1f}, mask AP {result['segm/AP']:.1f}"
        assert done.stdout.splitlines()[-1] == f"{ap} ({folder}/metrics.json)"

    def test_writes_metrics(self, resumed):
        folder, _, total, _ = resumed
        last = lines(folder)[-1]
        assert last["iteration"] == total - 1 and math.isfinite(last["total_loss"])
        assert 0 <= last["bbox/AP"] <= 100 and 0 <= last["segm/AP"] <= 100
        iterations = [line["iteration"] for line in lines(folder)]
        assert iterations == sorted(set(iterations))
        assert list(folder.glob("events.out.tfevents.*"))

    def test_eval_only_appends_the_same_results(self, command, resumed):
        folder, _, total, _ = resumed
        before = lines(folder)
        settings = ("OUTPUT_DIR", folder)
        run(*command("EvoNormB0", *settings, flags=["--resume", "--eval-only"]))
        *old, new = lines(folder)
        assert repr(old) == repr(before)  # repr, as NaN equals nothing
        assert new["iteration"] == total - 1
        assert repr(new) == repr({key: before[-1][key] for key in new})

    def test_broken_image_met_by_a_worker(self, command, digits_root, tmp_path):
        shutil.copytree(digits_root / "digits", tmp_path / "digits")
        json_file = tmp_path / "digits/annotations/instances_train.json"
        content = json.loads(json_file.read_text())
        for i in range(7, 25):  # more than the sample that is read before training
            content["images"].insert(2, {**content["images"][0], "id": i})
        content["images"].insert(2, content["images"].pop())  # the third one is not in it
        image = tmp_path / "digits/train" / content["images"][2]["file_name"]
        json_file.write_text(json.dumps(content))
        image.write_bytes(image.read_bytes()[:200])
        settings = ("OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", 100)
        done = run(*command("EvoNormS0", *settings, root=tmp_path), status=2)
        assert "Traceback" not in done.stdout + done.stderr
        (line,) = (x for x in done.stderr.splitlines() if x.startswith("train_net.py: "))
        assert line.startswith(f"train_net.py: {image}: ")


@pytest.mark.slow
def test_a_formula_on_the_command_line(command, tmp_path):
    """Trained for two steps, then evaluated from the run's own config."""
    norm = ("MODEL.RESNETS.NORM", "x * tanh(v1 * x) / std_g(x)", "MODEL.EVONORM.LINEAR", "GN")
    run(*command("EvoNormS0", *norm, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 2))
    config = ["--config-file", str(tmp_path / "config.yaml"), "--eval-only", "--resume"]
    (python, tool, *_), environment = command("EvoNormS0")
    run([python, tool, *config], environment)
    *_, trained, evaluated = lines(tmp_path)
    assert repr(evaluated) == repr({key: trained[key] for key in evaluated})
    assert evaluated["iteration"] == 1 and "segm/AP" in evaluated


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


class TestRefusals:
    """In this process, as importing Detectron2 takes seconds."""

    @pytest.fixture
    def refuse(self, capsys, monkeypatch, tmp_path, digits_root, tiny_run):
        """refuse(*flags, settings=(...)): the only line on stderr, of a run that ends at once."""
        register_digits(digits_root)
        monkeypatch.chdir(tmp_path)

        def call(*flags, settings=(), norm="EvoNormS0"):
            file, values = tiny_run(norm, "OUTPUT_DIR", "run", "SOLVER.MAX_ITER", 4, *settings)
            arguments = ["train_net.py", "--config-file", file, *flags, *values]
            monkeypatch.setattr(sys, "argv", arguments)
            assert tool.main() == 2
            assert not Path("exploded").exists()
            last = capsys.readouterr().err.splitlines()[-1]
            assert last.startswith("train_net.py: ")
            return last.partition(": ")[2]

        return call

    def test_config(self, refuse, tmp_path):
        assert "MODEL.NORM" in refuse(settings=("MODEL.NORM", "EvoNormS0"))
        assert "SOLVER.MAX_ITER" in refuse(settings=("SOLVER.MAX_ITER", "many"))
        assert "unknown norm-act" in refuse(settings=("MODEL.FPN.NORM", "EvoNorm"))
        assert "none.yaml" in refuse("--config-file", "none.yaml")
        Path("bomb.yaml").write_text("SEED: !!python/object/apply:os.mkdir [exploded]")
        assert "bomb.yaml" in refuse("--config-file", "bomb.yaml")
        assert not Path("run").exists()

    def test_devices(self, refuse):
        assert "--num-gpus 8" in refuse("--num-gpus", "8")

    def test_data(self, refuse, tmp_path):
        assert "coco/annotations" in refuse(settings=("DATASETS.TEST", "('coco_2017_val',)"))
        register_digits(tmp_path)
        assert "make_digits.py" in refuse()
        assert not Path("run").exists()

    def test_folder_of_another_run(self, refuse):
        Path("run").mkdir()
        Path("run/model_final.pth").write_bytes(b"precious")
        assert "--resume" in refuse()
        assert [path.name for path in Path("run").iterdir()] == ["model_final.pth"]

    def test_weights(self, refuse):
        weights = ("MODEL.WEIGHTS",)
        assert "none.pth" in refuse(settings=(*weights, "none.pth"))
        torch.save({"model": Bomb()}, "bomb.pth")
        Path("bomb.pkl").write_bytes(pickle.dumps({"model": Bomb()}))
        for name in ("bomb.pth", "bomb.pkl"):
            assert f"{name}: loading it could run code" in refuse(settings=(*weights, name))
        Path("half.pth").write_bytes(Path("bomb.pth").read_bytes()[:200])
        assert "half.pth: damaged" in refuse(settings=(*weights, "half.pth"))

    def test_weights_of_another_norm(self, refuse, tiny_run):
        prefix = "backbone.bottom_up.stem.conv1.norm."
        names = ("weight", "bias", "running_mean", "running_var")
        torch.save({"model": {prefix + name: torch.ones(8) for name in names}}, "bn.pth")
        line = refuse(settings=("MODEL.WEIGHTS", "bn.pth"))
        assert "stem.conv1.norm" in line and "train from scratch" in line

    def test_half_written_resume(self, refuse):
        Path("run").mkdir()
        Path("run/last_checkpoint").write_text("model_0000001.pth")
        Path("run/model_0000001.pth").write_bytes(b"half")
        assert "run/model_0000001.pth: damaged" in refuse("--resume")

    def test_nothing_to_evaluate(self, refuse):
        assert "MODEL.WEIGHTS" in refuse("--eval-only")

    def test_faults_of_the_program_keep_their_traceback(self, refuse, monkeypatch):
        monkeypatch.setattr(tool, "check_run", lambda *_: {}["a fault"])
        with pytest.raises(KeyError, match="a fault"):
            refuse()
