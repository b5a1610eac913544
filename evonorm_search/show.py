"""What is to be known of one candidate: its formula, family, training, cost and properties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from evonorm import build_norm_act
from evonorm.expression import AGGREGATIONS
from evonorm.formula import Formula
from evonorm_runs.errors import UserError

from .results import Row, family_line

SCALES = (0.25, 4.0)
SHAPE = (16, 32, 16, 16)  # of the input that is measured with
EPS = 1e-12  # so small that it hides no invariance
NEGLIGIBLE = 1e-3  # what counts as none


class Properties(NamedTuple):
    """What is measured of a layer in training, as it starts.

    Attributes:
        batch_dependent: whether a sample's output depends on the other samples.
        scale_change: how much s * x for x changes the output, relative to it, for the worst of
            SCALES; 0 for a layer that is invariant to the scale of its input.
        off_centre: the root mean square of the channels' means over the output's deviation; 0 where
            each channel has the mean 0.
        saved_bytes: that the layer keeps for the backward pass, per value of a float32 input.
    """

    batch_dependent: bool
    scale_change: float
    off_centre: float
    saved_bytes: float


def measure(norm_act: str) -> Properties:
    """The properties of a name or a formula, on maps of normal values with means and scales."""
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    channel = (1, SHAPE[1], 1, 1)
    mean, scale = torch.randn(channel, **options), torch.randn(channel, **options).exp()
    x = mean + scale * torch.randn(SHAPE, **options)
    with torch.no_grad():
        layer = build_norm_act(norm_act, SHAPE[1], eps=EPS, dtype=torch.float64)
        y = layer(x)
        changes = [((layer(s * x) - y).norm() / y.norm()).item() for s in SCALES]
        means = y.mean((0, 2, 3))
        off_centre = (means.square().mean().sqrt() / y.std(correction=0)).item()
    plain = build_norm_act(norm_act, SHAPE[1])
    kept = _saved_bytes(plain, x.float().requires_grad_()) / x.numel()
    return Properties(bool(layer.batch_dependent), max(changes), off_centre, kept)


def _saved_bytes(layer: nn.Module, x: Tensor) -> int:
    storages = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    own = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    del y
    return sum(size for at, size in storages.items() if at not in own)


def operations(formula: Formula) -> int:
    """How many operations of a formula go over all values of a map, without gamma and beta.

    Those are the ones whose result differs from pixel to pixel, and the statistics. A statistic
    counts once, though its loop does more than that.
    """
    return sum(
        bool(node.inputs)
        and ("p" in node.varies or (node.op in AGGREGATIONS and "p" in node.inputs[0].varies))
        for node in formula.root.walk()
    )


def describe(rows: Sequence[Row], key: int, anchors: Sequence[str]) -> str:
    """All that is known of a candidate, as lines of text.

    Args:
        rows: of the store.
        anchors: of the search, in its order.

    Raises:
        UserError: the store has no such candidate.
    """
    line = family_line(rows, key)
    if not line:
        raise UserError(f"no candidate has the key {key}: `best` and `export` show the keys")
    candidate, result = line[-1]
    formula = Formula(candidate.formula)
    found = measure(candidate.formula)
    scale = (
        "yes"
        if found.scale_change < NEGLIGIBLE
        else f"no, changes by {100 * found.scale_change:.0f} %"
    )
    centred = "yes" if found.off_centre < NEGLIGIBLE else f"no, {found.off_centre:.2f} deviations"
    lines = [
        f"formula        {candidate.formula}",
        f"LaTeX          {formula.latex}",
        f"batch          {', '.join(formula.batch_statistics) or 'does not depend on it'}",
        f"operations     {operations(formula)} over all values, without gamma and beta",
        f"saved          {found.saved_bytes:.1f} bytes a value for the backward pass, in float32",
        f"scale          invariant: {scale}",
        f"mean           zero in each channel: {centred}",
    ]
    if candidate.same_as is not None:
        lines.append(f"equals         candidate {candidate.same_as}, whose result it shares")
    return "\n".join([*lines, "", *_training(result, anchors), "", *_family(line)])


def _training(result: dict, anchors: Sequence[str]) -> Iterator[str]:
    yield f"stage: {result['stage']}"
    for i, anchor in enumerate(anchors[: len(result["quality"])]):
        found = [f"{100 * result['quality'][i]:.1f} % early"]
        if i < len(result["worst"]):
            found.append(f"worst gradient norm {result['worst'][i]:.3g}")
        if i < len(result["scores"]):
            found.append(f"{100 * result['scores'][i]:.1f} % at the end")
        yield f"{anchor}: {', '.join(found)}"
        curve = result.get("curves", [])[i : i + 1]
        for losses in curve:
            shown = ("-" if loss is None else f"{loss:.2f}" for loss in losses)
            yield f"  loss {' '.join(shown)}"


def _family(line: Sequence[Row]) -> Iterator[str]:
    yield "family, from a random graph on:"
    for candidate, result in line:
        scores = result["scores"]
        mean = f"{100 * sum(scores) / len(scores):.1f} %" if scores else result["stage"]
        yield f"  {candidate.key:>6}  {mean:<9}  {candidate.formula}"
