"""Modules of one's own, which register ops, anchors or scores, in every process of a search."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from evonorm_runs.errors import UserError, one_line

MODULES: list[str] = []  # those that were loaded


def load(names: Sequence[str]) -> None:
    """Import modules by name, also from the working directory, as `python -m` does.

    Raises:
        UserError: there is no such module, or it can't be imported.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module may raise anything
            raise UserError(f"--import {name}: {one_line(error)}") from error
        if name not in MODULES:
            MODULES.append(name)
