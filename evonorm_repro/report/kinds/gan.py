"""Runs of tools/train_gan.py."""

from __future__ import annotations

import re

from evonorm_gan.evaluation.alike import alike

from .kind import Kind, Result

# The sign (1 if higher is better, -1 if lower is, 0 if neither) and the digits of each metric.
_RESULTS = {
    **{"FID": (-1, 2), "IS": (1, 2), "KID": (-1, 4), "precision": (1, 3), "recall": (1, 3)},
    **{"density": (1, 3), "coverage": (1, 3)},
}
# How many images precision and recall are of, as evonorm_gan.evaluation.metrics.COUNTS.
_COUNTS = {
    "precision_recall_images": "images for precision and recall",
    "precision_recall_real_images": "real images for them",
}
_KEY = re.compile(rf"({'|'.join(_RESULTS)})(-\S+)?( \(.*\))?")


def find_result(key: str) -> Result | None:
    """The result that a key of metrics.json stands for, None if it stands for none.

    evonorm_gan.evaluation.metrics.metric_key writes such keys: "FID", or with a stand-in for
    Inception "FID-digits (not comparable with Inception)".
    """
    if key in _COUNTS:
        return Result(key, _COUNTS[key], "", 0, 0, rank=("~", list(_COUNTS).index(key), ""))
    found = _KEY.fullmatch(key)
    if not found:
        return None
    name, rest = found[1], key[len(found[1]) :]
    sign, digits = _RESULTS[name]
    peak = name in ("FID", "IS")
    return Result(
        key,
        name + (found[2] or ""),
        "",
        sign,
        digits,
        remark=(found[3] or "").strip(),
        rank=(rest, list(_RESULTS).index(name), ""),
        first=peak,
        peak=peak,
        against=f"IS{rest}" if name == "FID" else "",
        logarithmic=name == "FID",
    )


def note(last: dict[str, float]) -> str:
    """A sentence on a generator that draws one picture for each class."""
    text = "recall is below a twentieth of precision: the images of a class look alike"
    return text if alike(last) else ""


KIND = Kind(
    id="gan",
    title="BigGAN-deep",
    tool="train_gan.py",
    config_key="MODEL.G_CH",
    metrics_key="loss_d",
    find_result=find_result,
    against_title="IS and FID",
    curves={
        "loss_d": "discriminator's loss",
        "loss_g": "generator's loss",
        "lr_g": "generator's learning rate",
        "lr_d": "discriminator's learning rate",
    },
    more_curves=("d_real", "d_fake", "ada_p", "singular_value/"),
    samples="samples/*.png",  # as evonorm_gan.run_log.write_samples writes them
    samples_note="Fixed z, of the moving average of the weights; a row for each class.",
    seeds_note="FID and IS are each run's at its peak.",
    note=note,
)
