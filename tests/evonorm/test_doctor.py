"""`python -m evonorm`: what it says is so, and it names what mends what is missing."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evonorm import __main__ as doctor
from evonorm import build_norm_act, list_norm_acts, ops

ROOT = Path(__file__).parents[2]


def test_it_imports_torch_only_and_runs_as_a_command():
    code = (
        "import sys; sys.argv = ['evonorm']\n"
        "from evonorm.__main__ import main\n"
        "assert main() == 0\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(loaded & {'detectron2', 'evonorm_runs', 'fvcore', 'timm', 'torchvision'})"
    )
    environment = {**os.environ, "EVONORM_REFERENCE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    *report, loaded = done.stdout.splitlines()
    assert done.returncode == 0 and loaded == "set()", done.stderr
    titles = [line for line in report if not line.startswith(" ")]
    assert titles == ["Versions", "GPU", "Layers", "Detectron2", "Packages", "Data"]
    assert any("unset EVONORM_REFERENCE" in line for line in report)
    (line,) = [line for line in report if "EvoNormS0" in line]
    assert "on a CPU plain PyTorch; on a GPU plain PyTorch" in line


def test_an_argument_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evonorm", "--foo"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("evonorm", run_name="__main__")
    assert "unrecognized arguments: --foo" in capsys.readouterr().err


class Calls(TorchDispatchMode):
    """Notes the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


def test_the_layers_of_one_operator_are_those_that_call_it():
    fused, *others = doctor._layers(ops.backends())
    said = [line.partition(":")[0].split(", ") for line in (fused, *others)]
    assert sorted(sum(said, [])) == sorted(list_norm_acts())
    for name in list_norm_acts():
        with Calls() as calls:
            build_norm_act(name, 32)(torch.ones(2, 32, 2, 2))
        assert ("evonorm::forward" in calls.names) is (name in said[0]), name


def test_why_not_a_faster_one_on_a_cpu(monkeypatch):
    monkeypatch.delenv("EVONORM_REFERENCE", raising=False)
    assert doctor._slow_on_cpu({"cpu": "native, AVX2"}) == []
    slow = {"cpu": "reference"}
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "install one, then: pip install --no-build" in doctor._slow_on_cpu(slow)[0]
    monkeypatch.setattr(shutil, "which", lambda name: name)
    (line,) = doctor._slow_on_cpu(slow)
    assert line.endswith("in a checkout of the project: pip install --no-build-isolation -e .")


def test_why_not_a_faster_one_on_a_gpu(monkeypatch):
    monkeypatch.delenv("EVONORM_REFERENCE", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert doctor._slow_on_gpu({"cuda": "triton 3.8.0"}, []) == []
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found("torch"))
    assert doctor._slow_on_gpu({"cuda": "reference"}, ["no compiler"]) == ["no compiler"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in doctor._slow_on_gpu({"cuda": "reference"}, [])[0]


def test_which_detectron2_is_there(monkeypatch, tmp_path):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert doctor._detectron2()[0].startswith(f"{tmp_path}: Python code only")
    (tmp_path / "_C.cpython-311-x86_64-linux-gnu.so").touch()
    assert "with its compiled operators" in doctor._detectron2()[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "python tools/install_detectron2.py" in doctor._detectron2()[0]
    assert (ROOT / "tools/install_detectron2.py").is_file()


def test_packages_that_are_missing(monkeypatch):
    required = ["torch>=2.4", *(f'{x}; extra == "gan"' for x in ("torch", "no-such-a", "no-such"))]
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    lines = doctor._packages()
    assert "BigGAN-deep: missing: pip install no-such-a no-such" in lines
    assert "detectors: all there" in lines


@pytest.mark.parametrize("named", [True, False])
def test_where_data_are_looked_for(monkeypatch, tmp_path, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    folder = tmp_path / ("mine" if named else "datasets")
    (folder / "digits").mkdir(parents=True)
    if named:
        monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    lines = doctor._data()
    assert str(folder) in lines[0] and ("is not set" in lines[0]) is not named
    assert "digits: there" in lines and any("coco/val2017: missing: " in x for x in lines)
