"""Runs of tools/train_gan.py."""

from __future__ import annotations

import re

from .kind import Kind, Result

# evonorm_gan.evaluation.metrics.metric_key: "FID", or "FID-digits (not comparable with Inception)".
_KEY = re.compile(r"(FID|IS|KID|precision|recall)(-\S+)?( \(.*\))?")
# Their sign (1: the higher the better) and digits.
_RESULTS = {"FID": (-1, 2), "IS": (1, 2), "KID": (-1, 4), "precision": (1, 3), "recall": (1, 3)}


def find_result(key: str) -> Result | None:
    found = _KEY.fullmatch(key)
    if not found:
        return None
    name = found[1]
    sign, digits = _RESULTS[name]
    peak = name in ("FID", "IS")
    return Result(
        key,
        name + (found[2] or ""),
        "",
        sign,
        digits,
        remark=(found[3] or "").strip(),
        rank=(key[len(name) :], list(_RESULTS).index(name), ""),
        first=peak,
        peak=peak,
    )


KIND = Kind(
    id="gan",
    title="BigGAN-deep",
    tool="train_gan.py",
    config_key="MODEL.G_CH",
    metrics_key="loss_d",
    find_result=find_result,
    curves={
        "loss_d": "discriminator's loss",
        "loss_g": "generator's loss",
        "lr_g": "generator's learning rate",
        "lr_d": "discriminator's learning rate",
    },
    more_curves=("d_real", "d_fake", "singular_value/"),
)
