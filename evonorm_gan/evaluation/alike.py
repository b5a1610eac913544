"""A sign of a generator that draws one picture for each class."""

from __future__ import annotations

from collections.abc import Mapping

SHARE = 1 / 20  # of precision; real images have equal ones, and a good run here had a third
NAMES = ("precision", "recall")


def alike(results: Mapping[str, float]) -> bool:
    """Whether recall is so far below precision that the images of a class look alike.

    The images are near to real ones (precision, Kynkäänniemi et al., 2019), but few real ones are
    near to them (recall).

    Args:
        results: of an evaluation, or a line of metrics.json; without these two it is False.
    """
    found = {name: [v for key, v in results.items() if _is(name, key)] for name in NAMES}
    pairs = zip(*found.values())
    return any(recall < SHARE * precision for precision, recall in pairs)


def _is(name: str, key: str) -> bool:
    """Whether a key is that of a metric, of any extractor: "recall", "recall-digits (...)"."""
    return key.split(" ")[0].split("-")[0] == name
