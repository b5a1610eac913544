"""The kinds of runs that the report knows. A new kind is a module here and a line in RUN_KINDS."""

from __future__ import annotations

from . import classifier, detection, gan, search
from .kind import Kind, Result

RUN_KINDS = (detection.KIND, gan.KIND, classifier.KIND, search.KIND)  # in the report's order


def _any_result(key: str) -> Result | None:
    found = (kind.find_result(key) for kind in RUN_KINDS)
    return next((result for result in found if result), None)


# A run that no kind recognises may hold the results of any kind.
OTHER = Kind(
    id="other",
    title="Other runs",
    tool="",
    config_key="",
    metrics_key="",
    norm_keys=(*gan.KIND.norm_keys, *detection.KIND.norm_keys),
    find_result=_any_result,
    find_class=detection.find_class,
    classes_title=detection.KIND.classes_title,
    against_title=gan.KIND.against_title,
    samples=gan.KIND.samples,
    samples_note=gan.KIND.samples_note,
)

__all__ = ["OTHER", "RUN_KINDS", "Kind", "Result"]
