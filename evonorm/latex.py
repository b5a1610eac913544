"""An expression in the paper's notation, as LaTeX."""

from __future__ import annotations

from .expression import AGGREGATIONS, OWN, Node

_OVER = {"b": "b,w,h", "c": "w,h,c", "i": "w,h", "g": "w,h,c/g"}
_BINDS = {"add": 1, "neg": 2, "mul": 3}  # how strongly; all else is 4
_SHORT = 24  # characters of an argument that may be written twice


def latex(node: Node) -> str:
    """For a mathematical environment."""
    if node.op == "number":
        return _number(node.text)
    if node.op in ("x", "v0", "v1"):
        return node.op if node.op == "x" else f"v_{node.op[1]}"
    if node.op in AGGREGATIONS:
        return _aggregation(node)
    if node.op == "add":
        one, two = node.inputs
        if two.op == "neg":
            return f"{latex(one)} - {_bracketed(two.inputs[0], 3)}"
        return f"{latex(one)} {'' if two.text.startswith('-') else '+ '}{latex(two)}"
    if node.op == "neg":
        return f"-{_bracketed(node.inputs[0], 3)}"
    if node.op == "mul":
        one, two = (_bracketed(child, 3) for child in node.inputs)
        return rf"{one} {two}" if not two[0].isdigit() else rf"{one} \cdot {two}"
    if node.op == "div":
        return rf"\frac{{{latex(node.inputs[0])}}}{{{latex(node.inputs[1])}}}"
    if node.op in OWN:
        name = node.op.replace("_", r"\_")
        return rf"\operatorname{{{name}}}({', '.join(map(latex, node.inputs))})"
    if node.op == "max":
        return rf"\max({', '.join(map(latex, node.inputs))})"
    return _function(node.op, node.inputs[0])


def _number(text: str) -> str:
    digits, exponent, power = text.partition("e")
    return rf"{digits} \cdot 10^{{{int(power)}}}" if exponent else digits


def _function(op: str, a: Node) -> str:
    inner = latex(a)
    if op == "exp":
        return f"e^{{{inner}}}"
    if op == "abs":
        return f"|{inner}|"
    if op == "square":
        return f"{_bracketed(a, 4)}^2" if not a.inputs else rf"\left({inner}\right)^2"
    # A long argument is written once, since it may hold such functions itself.
    signed = inner if len(a.text) <= _SHORT else r"\cdot"
    sign = "" if a.sign == "+" else rf"\mathrm{{sign}}({signed}) "
    if op == "sqrt":
        return rf"\sqrt{{{inner}}}" if not sign else rf"{sign}\sqrt{{|{inner}|}}"
    if op == "log":
        return rf"\ln({inner})" if not sign else rf"{sign}\ln|{inner}|"
    return rf"\{'sigma' if op == 'sigmoid' else op}({inner})"


def _aggregation(node: Node) -> str:
    kind, over = node.op.split("_")
    inner = latex(node.inputs[0])
    if kind == "mean":
        return rf"\mu_{{{_OVER[over]}}}({inner})"
    if kind == "std":
        return rf"\sqrt{{s^2_{{{_OVER[over]}}}({inner})}}"
    square = inner if not node.inputs[0].inputs else rf"\left({inner}\right)"
    return rf"\sqrt{{\mu_{{{_OVER[over]}}}({square}^2)}}"


def _bracketed(node: Node, least: int) -> str:
    text = latex(node)
    return text if _BINDS.get(node.op, 4) >= least else rf"\left({text}\right)"
