"""The cheap stages of the cascade: which graphs are worth training at all.

They come before the paper's two rejections (section 4.4) and are ours: most random graphs do not
depend on their input, and most others compute what another graph computed before.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evonorm import build_norm_act
from evonorm.base import NormAct

from .space import Graph, depends_on_input, formula

# Why a graph is not trained; of a duplicate, the candidate that it equals is named beside it.
IGNORES_INPUT = "ignores its input"
SEEN_FORMULA = "formula seen before"
NOT_FINITE = "not finite"
CONSTANT = "constant"
NO_GRADIENT = "no gradient"
SEEN_VALUES = "values seen before"
NEW = "new"
STAGES = (IGNORES_INPUT, SEEN_FORMULA, NOT_FINITE, CONSTANT, NO_GRADIENT, SEEN_VALUES, NEW)

SHAPE, GROUPS = (8, 8, 4, 4), 2  # of the fixed inputs
DIGITS = 6  # to which values are compared


@dataclass
class Sieve:
    """Sifts graphs one after the other, and remembers those that it let through.

    Attributes:
        formulas, values: the candidates let through, by formula and by fingerprint.
        counts: how many graphs ended at each stage.
        duplicates: hold back all that these stages name; False only what ignores its input.
    """

    formulas: dict[str, int] = field(default_factory=dict)
    values: dict[bytes, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    duplicates: bool = True

    def __call__(self, graph: Graph, key: int) -> tuple[str, int | None, bytes]:
        """One of STAGES, the earlier candidate that the graph equals, if any, and a fingerprint.

        Args:
            key: of the candidate, should it be new.
        """
        stage, equal, fingerprint = self._sift(graph, key)
        self.counts[stage] += 1
        return stage, equal, fingerprint

    def _sift(self, graph: Graph, key: int) -> tuple[str, int | None, bytes]:
        found = formula(graph) if depends_on_input(graph) else None
        if found is None or "x" not in {node.op for node in found.root.walk()}:
            return IGNORES_INPUT, None, b""
        if not self.duplicates:
            return NEW, None, b""
        text = str(found)
        if text in self.formulas:
            return SEEN_FORMULA, self.formulas[text], b""
        stage, fingerprint = probe(text)
        if stage != NEW:
            return stage, None, b""
        if fingerprint in self.values:
            return SEEN_VALUES, self.values[fingerprint], fingerprint
        self.formulas[text] = self.values[fingerprint] = key
        return NEW, None, fingerprint


def probe(norm_act: str) -> tuple[str, bytes]:
    """A layer on fixed inputs: the stage that it ends at, NEW if none, and its fingerprint.

    The fingerprint is a hash of the output, the gradients of x, v0 and v1, and the output in
    evaluation, on maps of many means and scales, with learnt vectors and running statistics away
    from their first values. What is checked to be finite, not constant and not without gradient is
    the layer as it starts, on a standard normal input. Constant is also what has one value on each
    map, with either vectors: no such layer passed the quality test in our searches.
    """
    layer = build_norm_act(norm_act, SHAPE[1], num_groups=GROUPS, dtype=torch.float64)
    normal, x, dy, vectors = _inputs()
    started = _run(layer, normal, dy)
    if not all(torch.isfinite(t).all() for t in started):
        return NOT_FINITE, b""
    y, dx = started[:2]
    if (y.amax((0, 2, 3)) == y.amin((0, 2, 3))).all():  # of each channel; the bias gives no more
        return CONSTANT, b""
    if not dx.any():
        return NO_GRADIENT, b""
    with torch.no_grad():
        for name, values in vectors.items():
            if getattr(layer, name, None) is not None:
                getattr(layer, name).copy_(values)
    moved = _run(layer, normal, dy)
    if _one_value_a_map(y) and _one_value_a_map(moved[0]):
        return CONSTANT, b""
    tensors = [*moved, *_run(layer, x, dy)]
    if layer.batch_dependent:
        with torch.no_grad():
            tensors.append(layer.eval()(x))
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(_rounded(tensor))
    return NEW, digest.digest()


@functools.lru_cache
def _inputs() -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """A normal x, an x whose maps have means and scales of their own, dy, v0 and v1."""
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    samples, channels = SHAPE[:2]
    normal, dy = (torch.randn(SHAPE, **options) for _ in range(2))
    # Means of both signs, of samples and of groups, so that a maximum takes either input somewhere.
    means = torch.linspace(-3, 3, samples, dtype=torch.float64).reshape(-1, 1, 1, 1)
    means = means + 2 * torch.randn(samples, channels, 1, 1, **options)
    scales = (torch.randn(samples, channels, 1, 1, **options) - 0.5).exp()
    values = torch.linspace(-4, 6, channels, dtype=torch.float64)
    vectors = {name: values[torch.randperm(channels, generator=generator)] for name in ("v0", "v")}
    return normal, means + scales * normal, dy, vectors


def _run(layer: NormAct, x: Tensor, dy: Tensor) -> list[Tensor]:
    """The output in training, and the gradients of x, v0 and v1, zeros where there is none."""
    x = x.clone().requires_grad_()
    y = layer.train()(x)
    vectors = [v for v in (getattr(layer, "v0", None), getattr(layer, "v", None)) if v is not None]
    wanted = [x, *vectors]
    grads = torch.autograd.grad(y, wanted, dy, allow_unused=True)
    return [y.detach(), *(torch.zeros_like(t) if g is None else g for t, g in zip(wanted, grads))]


def _one_value_a_map(y: Tensor) -> bool:
    return bool((y.amax((2, 3)) == y.amin((2, 3))).all())


def _rounded(tensor: Tensor) -> bytes:
    """The values of a tensor to DIGITS, relative to each where it is more than 0.01."""
    finite = torch.isfinite(tensor)
    digits = torch.asinh(torch.where(finite, tensor, 0.0) * 100) * 10**DIGITS
    return finite.numpy().tobytes() + digits.round().to(torch.int64).numpy().tobytes()
