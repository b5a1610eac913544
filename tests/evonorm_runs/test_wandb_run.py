"""Weights & Biases beside metrics.json, with a module in place of the package."""

from __future__ import annotations

import importlib
import sys

import pytest
from fvcore.common.config import CfgNode

from evonorm_runs.errors import UserError
from evonorm_runs.log import Log


def config(project="mine", **keys):
    return CfgNode({"WANDB_PROJECT": project, "SOLVER": {"MAX_ITER": 4}, **keys})


def test_a_run_is_logged_and_goes_on(tmp_path, fake_wandb):
    for step in (1, 2):
        log = Log(tmp_path, step - 1, config())
        log.write(step, {"loss": 0.5 * step})
        log.close()
    (_, first), *logged, (_, second), _, _ = fake_wandb
    assert logged == [("log", 1, {"loss": 0.5}), ("finish",)]
    assert fake_wandb[-2:] == [("log", 2, {"loss": 1.0}), ("finish",)]
    assert first == second and len(first["id"]) == 8 and first["resume"] == "allow"
    assert (first["project"], first["name"]) == ("mine", tmp_path.name)
    assert first["dir"] == str(tmp_path)
    assert first["config"] == {"WANDB_PROJECT": "mine", "SOLVER.MAX_ITER": 4}


def test_without_a_project_nothing_is_started(tmp_path, fake_wandb):
    for cfg in (None, config("")):
        log = Log(tmp_path, 0, cfg)
        log.write(1, {"loss": 1.0})
        log.close()
    assert not fake_wandb and not (tmp_path / "wandb_id").exists()


def test_a_package_that_is_missing_or_refuses(tmp_path, fake_wandb, monkeypatch):
    def refuse(**_):
        raise sys.modules["wandb"].Error("api_key not configured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(UserError, match="^WANDB_PROJECT mine: api_key not configured$"):
        Log(tmp_path, 0, config())
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="^WANDB_PROJECT is mine, but .* `pip install wandb`"):
        Log(tmp_path, 0, config())
