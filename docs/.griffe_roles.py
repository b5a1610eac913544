"""Sphinx's roles in docstrings, :func:`x` and such, as links for mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod):`([\w.]+)`")


class Roles(griffe.Extension):
    """Replaces each role by a link to what it names, plain code where no page describes that."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = ROLE.sub(lambda m: link(obj, m[1]), obj.docstring.value)


def link(obj: griffe.Object, name: str) -> str:
    try:
        path = obj.resolve(name.lstrip("."))
    except griffe.NameResolutionError:
        path = name
    return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'
