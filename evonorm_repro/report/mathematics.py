"""Layers as mathematics that a browser sets without a network."""

from __future__ import annotations

from latex2mathml.converter import convert
from markupsafe import Markup

from evonorm import formula_of

LONGEST = 2000  # characters of LaTeX; longer formulas are shown as text


def mathml(norm: str) -> Markup | None:
    """A layer with γ and β as MathML; None if it has no formula or a broken or too long one."""
    try:
        formula = formula_of(norm)
    except ValueError:
        return None
    if formula is None or len(formula.latex) > LONGEST:
        return None
    latex = rf"\left({formula.latex}\right)" if formula.root.op == "add" else formula.latex
    # Safe without escaping, since the formula was parsed and holds nothing but mathematics.
    return Markup(convert(rf"{latex} \cdot \gamma + \beta"))
