"""The kinds of runs that the report knows. A new kind is a module here and a line below."""

from __future__ import annotations

from . import classifier, detection, gan
from .kind import Kind, Result

RUN_KINDS = (detection.KIND, gan.KIND, classifier.KIND)  # in the report's order
OTHER = Kind("other", "Other runs", tool="", config_key="", metrics_key="")

__all__ = ["OTHER", "RUN_KINDS", "Kind", "Result"]
