"""docs/weights.md: each name builds, without batch statistics, and has the licence that it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

PAGE = Path(__file__).parents[2] / "docs/weights.md"
ROWS = [
    [cell.strip(" `") for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if re.match(r"\| `\w+\.\w+` \|", line)
]
LICENCES = {"apache-2.0": "Apache-2.0", "cc-by-nc-4.0": "CC BY-NC 4.0"}


def test_none_is_missing():
    names = {row[0] for row in ROWS}
    kinds = re.compile(r"_evos\.|_gn\.|nfnet|^nf_|^resnetv2_\d+x\d_bit")
    all_of_them = {n for n in timm.list_pretrained() if kinds.search(n)}
    # Weights that are no ImageNet-1k classifier's, or another size of one that is listed.
    assert all_of_them - names <= {n for n in all_of_them if n.endswith(("in21k", "in1k_384"))}
    assert len(names) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_builds_without_batch_statistics(row):
    name, norm, accuracy, millions, licence = row
    with torch.device("meta"):
        model = timm.create_model(name)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    kinds = {type(m).__name__ for m in model.modules()}
    wanted = {"Evo": "EvoNorm2dS0", "Gro": "GroupNorm", "Lay": "LayerNorm", "non": ""}[norm[:3]]
    assert any(kind.startswith(wanted) for kind in kinds)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters / 1e6 == pytest.approx(float(millions), abs=0.006)
    assert LICENCES[timm.get_pretrained_cfg(name).license] == licence
    assert re.fullmatch(r"\d\d\.\d\d @\d{3}(, \d\d\.\d\d @\d{3})*", accuracy)
