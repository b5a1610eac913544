"""Functions of one's own in formulas."""

from __future__ import annotations

import keyword
from typing import Callable

from torch import Tensor

from .expression import AGGREGATIONS, FUNCTIONS, LEAVES, OWN, Own

_TAKEN = (*LEAVES, *FUNCTIONS, *AGGREGATIONS, "number", "add", "sub", "mul", "div", "neg")


def register_function(name: str, function: Callable[..., Tensor], inputs: int = 1) -> None:
    """Make a function of your own available in formulas, as `name(x)`.

    A formula with it needs the same registration wherever it is read, also where a checkpoint is
    loaded. It runs as PyTorch code, without a kernel of ours.

    Args:
        name: an identifier, such as "erf".
        function: of element-wise tensors, which gives a tensor of their broadcast shape and is
            differentiable twice, such as torch.erf.
        inputs: how many it takes.

    Raises:
        ValueError: the name is no identifier, taken, or like that of a statistic.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"function {name!r}: the name should be an identifier, such as 'erf'")
    if name.endswith("_b") or name.startswith(("mean_", "std_", "rms_")):
        raise ValueError(f"function {name!r} is named as a statistic: choose another name")
    if name in _TAKEN or name in OWN:
        raise ValueError(f"function {name!r} is there already: choose another name")
    OWN[name] = Own(function, inputs)
