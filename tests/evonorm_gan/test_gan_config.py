"""The configs: what is in the files, each with any norm-act, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evonorm_gan.config import finish_config, get_cfg, load_config
from evonorm_gan.models import build_generator
from evonorm_gan.models.architecture import stage_channels
from evonorm_runs.errors import UserError

FOLDER = Path(__file__).parents[2] / "configs" / "gan"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
NORMS = ["BN-ReLU", "GN-ReLU", "LN-ReLU", "PixelNorm-ReLU", "EvoNormB0", "EvoNormS0"]


def load(file, *overrides):
    return load_config(str(FOLDER / file), ["DEVICE", "cpu", *map(str, overrides)])


def test_the_files_are_there():
    expected = {"imagenet128.yaml", "imagenet128_small_batch.yaml", "cifar10.yaml", "digits.yaml"}
    expected |= {"garments.yaml"}
    assert expected <= set(FILES)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("norm", NORMS)
def test_each_config_takes_each_norm_act_by_one_key(file, norm):
    cfg = load(file, "MODEL.NORM", norm)
    for network, ch in (("G", cfg.MODEL.G_CH), ("D", cfg.MODEL.D_CH)):
        assert stage_channels(network, cfg.MODEL.RESOLUTION, ch)  # the width in the file fits
    # Orthogonal weights of that width take a while.
    G = build_generator(load(file, "MODEL.NORM", norm, "MODEL.G_CH", 8))
    with torch.no_grad():
        images = G(torch.randn(2, G.dim_z), torch.tensor([0, cfg.MODEL.NUM_CLASSES - 1]))
    assert images.shape == (2, 3, cfg.MODEL.RESOLUTION, cfg.MODEL.RESOLUTION)
    if norm == "GN-ReLU":  # 16 groups, as section 5.5 of the paper has it
        assert max(m.num_groups for m in G.modules() if hasattr(m, "num_groups")) == 16
    if norm == "BN-ReLU":
        assert G.last_norm.eps == 1e-4


def test_the_papers_setting():
    cfg = load("imagenet128.yaml")
    solver = cfg.SOLVER
    assert (cfg.MODEL.G_CH, cfg.MODEL.D_CH, cfg.MODEL.DIM_Z) == (128, 128, 128)
    assert (solver.BATCH_SIZE, solver.D_STEPS, solver.LR_G, solver.LR_D) == (2048, 2, 5e-5, 2e-4)
    assert (tuple(solver.BETAS), solver.EPS) == ((0.0, 0.999), 1e-6)
    assert (solver.EMA_DECAY, solver.EMA_START) == (0.9999, 20_000)
    assert cfg.TEST.NUM_SAMPLES == 50_000 and cfg.DATA.FLIP


@pytest.mark.parametrize(
    "overrides, line",
    [
        (
            ("MODEL.NORM", "EvoNormS9"),
            "MODEL.NORM: unknown norm-act 'EvoNormS9': did you mean 'EvoNorm",
        ),
        (("MODEL.WIDTH", 3), "Non-existent key: MODEL.WIDTH"),
        (("SOLVER.LR_G",), "odd length"),
        (("SOLVER.LR_G", "fast"), "Type mismatch"),
        (("SOLVER.BATCH_SIZE", 0), "SOLVER.BATCH_SIZE is 0, but should be more than 0"),
        (("SOLVER.EMA_DECAY", 1.0), "should be in [0, 1)"),
        (("SEED", -1), "SEED is -1, but should not be negative"),
        (("SOLVER.R1_GAMMA", 1.0, "SOLVER.AMP", "fp16"), "R1_GAMMA takes gradients of gradients"),
        (("SOLVER.LECAM", -1.0), "SOLVER.LECAM is -1.0, but should not be negative"),
        (("SOLVER.AMP", "fp8"), "known are '', 'bf16', 'fp16'"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(overrides, line):
    with pytest.raises(UserError) as error:
        load("digits.yaml", *overrides)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key, value",
    [
        ("TEST.TRUNCATION", "abc"),
        ("TEST.NUM_SAMPLES", 9),
        ("TEST.TRUNCATE_BY", "clip"),
        ("TEST.SUBSET", 9),
        ("TEST.SUBSET", 50.0),
        ("TEST.STANDING_BATCHES", 10**12),
        ("TEST.SUBSET", "all"),
        ("MODEL.D_32_ENDS_AT", 16),
        ("MODEL.ATTENTION", "'all'"),
        ("MODEL.BLOCKS", 0),
        ("TEST.STANDING_BATCHES", -1),
        ("MODEL.NUM_GROUPS", 0),
        ("SOLVER.BETAS", "(2.0, 0.9)"),
        ("SOLVER.BETAS", "('a', 'b')"),
        ("SOLVER.BETAS", "(0.0, 0.9, 0.9)"),
        ("SOLVER.BATCH_SIZE", 10**12),
        ("TEST.NUM_SAMPLES", 10**12),
        ("DATA.NUM_WORKERS", 100_000),
        ("MODEL.G_CH", 10**9),
        ("MODEL.D_CH", 10**5),
        ("MODEL.DIM_Z", 10**9),
        ("SOLVER.EPS", -1.0),
        ("SEED", 2**63),
        ("DEVICE", "xyz"),
        ("DEVICE", "mps"),
        ("DEVICE", "meta"),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(key, value):
    with pytest.raises(UserError, match=key) as error:
        finish_config(get_cfg(), [key, str(value)])
    assert "\n" not in str(error.value)
