"""Configs from files that nobody need trust."""

from __future__ import annotations

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog  # noqa: F401  (registers Detectron2's own)

from evonorm_d2.run_config import load_config
from evonorm_runs.errors import UserError

CPU = ("MODEL.DEVICE", "cpu")


@pytest.fixture
def write(tmp_path):
    def to_file(text, name="config.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return to_file


def refusal(file, overrides=CPU):
    with pytest.raises(UserError) as error:
        load_config(file, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_base_file_overrides_and_resolution(write):
    write("MODEL: {FPN: {NORM: EvoNormS0}, RESNETS: {DEPTH: 50}}\nSEED: 3", "base.yaml")
    file = write(
        "_BASE_: base.yaml\n"
        "MODEL: {BACKBONE: {NAME: build_resnet_fpn_backbone}, RESNETS: {DEPTH: 101}}"
    )
    cfg = load_config(file, (*CPU, "SEED", "4"))
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.SEED, cfg.MODEL.DEVICE) == (101, 4, "cpu")
    assert cfg.MODEL.BACKBONE.NAME == "build_norm_act_resnet_fpn_backbone"
    assert cfg.is_frozen()
    again = load_config(write(cfg.dump(), "again.yaml"), ())
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


@pytest.mark.parametrize("in_base", [True, False])
@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir [PATH]", "!!python/name:os.mkdir", "!!python/tuple []"]
)
def test_yaml_runs_no_code(write, tmp_path, in_base, tag):
    bomb = write(f"SEED: {tag.replace('PATH', str(tmp_path / 'exploded'))}", "bomb.yaml")
    line = refusal(write("_BASE_: bomb.yaml") if in_base else bomb)
    assert "could not determine a constructor" in line and bomb in line
    assert not (tmp_path / "exploded").exists()


def test_nor_does_what_a_config_names(write, tmp_path):
    (tmp_path / "lazy.py").write_text("import os\nos.mkdir('exploded')")
    assert "lazyconfig_train_net.py" in refusal(str(tmp_path / "lazy.py"))
    assert "pickles" in refusal(write("MODEL: {LOAD_PROPOSALS: True}"))
    evil = f"__import__('os').mkdir('{tmp_path / 'exploded'}')"
    assert load_config(write(""" {} """), (*CPU, "OUTPUT_DIR", evil)).OUTPUT_DIR == evil
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "text, reason",
    [
        ("MODEL: {RESNET: {DEPTH: 50}}", "Non-existent config key: MODEL.RESNET"),
        ("SOLVER: {MAX_ITER: many}", "SOLVER.MAX_ITER"),
        ("MODEL: [", "line 1"),
        ("", "config.yaml"),
        ("- 1", "config.yaml"),
        ("_BASE_: none.yaml", "none.yaml"),
        ("_BASE_: config.yaml", "_BASE_ leads back to itself"),
        ("VERSION: 9", "v9"),
    ],
)
def test_bad_files(write, text, reason):
    file = write(text)
    line = refusal(file)
    assert line.startswith(f"{file}: ") and reason in line


def test_missing_file(tmp_path):
    assert str(tmp_path / "none.yaml") in refusal(str(tmp_path / "none.yaml"))
    assert "--config-file" in refusal("")


@pytest.mark.parametrize(
    "overrides, reason",
    [
        (("SEED",), "odd length"),
        (("SEEDS", "1"), "SEEDS"),
        (("SEED", "one"), "SEED"),
        (("MODEL.FPN.NORM", "EvoNorm"), "unknown norm-act 'EvoNorm'"),
        (("MODEL.FPN.NORM", "EvoNormS0"), "'build_my_backbone' (MODEL.BACKBONE.NAME)"),
    ],
)
def test_bad_overrides(write, overrides, reason):
    assert reason in refusal(write("MODEL: {BACKBONE: {NAME: build_my_backbone}}"), overrides)


class TestDevice:
    @pytest.mark.parametrize("available", [True, False])
    def test_chosen_if_named_nowhere(self, write, monkeypatch, caplog, available):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        assert load_config(write("SEED: 1")).MODEL.DEVICE == ("cuda" if available else "cpu")
        assert ("running on the CPU" in caplog.text) is not available

    def test_refused_if_named_and_absent(self, write, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert "MODEL.DEVICE cpu" in refusal(write("MODEL: {DEVICE: cuda}"), ())
        assert "cuda:1" in refusal(write("SEED: 1"), ("MODEL.DEVICE", "cuda:1"))
