"""A wheel has the tools as commands, and the configs, without the checkout that it was built of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from evonorm_runs.checkout import ROOT

pytestmark = pytest.mark.slow


def call(*command, cwd, **variables):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy, without the CPU kernels, which take a minute to compile."""
    source = tmp_path_factory.mktemp("source")
    for path in [*ROOT.glob("evonorm*"), ROOT / "configs", ROOT / "tools"]:
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "_cpu.*")
            shutil.copytree(path, source / path.name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps")
    out = tmp_path_factory.mktemp("wheel")
    call(*pip, "--no-build-isolation", "-w", out, source, cwd=out, CC="false", CXX="false")
    shutil.rmtree(source)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def commands(wheel, tmp_path_factory):
    """The folder of an environment's commands, with the wheel and the libraries of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    bin = folder / "bin"
    install = ("install", "--quiet", "--no-index", "--no-deps", wheel)
    call(sys.executable, "-m", "pip", "--python", bin / "python", *install, cwd=folder)
    # As a line of a .pth file, the libraries' folder brings no editable install along.
    packages = call(
        bin / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    )
    libraries = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (Path(packages.strip()) / "libraries.pth").write_text("\n".join(libraries) + "\n")
    return bin


def test_a_wheel_has_all_tools_and_configs(wheel, commands):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("tools", "configs"):
        files = {
            f"evonorm_runs/{path.relative_to(ROOT)}"
            for path in (ROOT / folder).rglob("*")
            if path.suffix in (".py", ".yaml")
        }
        assert files == {name for name in names if name.startswith(f"evonorm_runs/{folder}/")}
    tops = {name.partition("/")[0] for name in names}
    assert all(top.startswith("evonorm") for top in tops)
    tools = {f"evonorm-{path.stem.replace('_', '-')}" for path in (ROOT / "tools").glob("*.py")}
    assert tools == {path.name for path in commands.glob("evonorm-*")}


WHERE = """
import evonorm, evonorm_d2, evonorm_gan, evonorm_repro.report, evonorm_runs, sys
from evonorm_repro.tables import SCALES, TABLES
from evonorm_runs.checkout import ROOT
for module in list(sys.modules.values()):
    if module.__name__.startswith("evonorm") and getattr(module, "__file__", None):
        assert module.__file__.startswith(sys.prefix), module
for table in TABLES.values():
    for scale in SCALES:
        for model in table.models:
            experiment = table(scale, model)
            assert (ROOT / experiment.config).is_file() and (ROOT / experiment.tool).is_file()
"""


def test_its_modules_need_no_checkout(commands, tmp_path):
    call(commands / "python", "-c", WHERE, cwd=tmp_path)


def test_its_commands_train(commands, tmp_path):
    config = "configs/classification/digits.yaml"
    settings = ("SOLVER.EPOCHS", 1, "OUTPUT_DIR", "run")
    call(commands / "evonorm-train-classifier", "--config-file", config, *settings, cwd=tmp_path)
    assert (tmp_path / "run" / "metrics.json").is_file()
    config = "configs/detection/paper/mask_rcnn_R_50_FPN_EvoNormS0.yaml"
    counts = call(commands / "evonorm-analyze-model", "--config-file", config, cwd=tmp_path)
    assert "46.379 " in counts
