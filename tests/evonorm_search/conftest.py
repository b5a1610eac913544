"""Modules of this folder that processes of a search import by their names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from evonorm.expression import OWN
from evonorm_search import plugins
from evonorm_search.anchors import ANCHORS
from evonorm_search.scores import SCORES

HERE = Path(__file__).parent


@pytest.fixture
def importable(monkeypatch):
    """This folder's modules can be imported, also in processes that are started."""
    path = [str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture
def own(importable):
    """The parts of own_parts.py are registered."""
    before = [(known, dict(known)) for known in (OWN, ANCHORS, SCORES)]
    sys.modules.pop("own_parts", None)
    plugins.load(["own_parts"])
    yield
    plugins.MODULES.remove("own_parts")
    for known, saved in before:
        known.clear()
        known.update(saved)
