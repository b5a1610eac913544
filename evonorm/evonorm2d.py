"""The call signature of the `evonorm2d` project, for its users."""

from __future__ import annotations

from .formulas import FORMULAS
from .layers import EvoNorm


class EvoNorm2D(EvoNorm):
    """EvoNorm-S0 or B0 with the call signature of the `evonorm2d` project.

    Args:
        input: C of the input (N, C, H, W).
        non_linear: False leaves the affine map only.
        version: "S0" or "B0".
        efficient: S0 with x * sigmoid(x), so without v, as that project's memory-efficient swish.
        momentum: the *decay* of the running variance, 0.9 for torch's 0.1.
        groups: of channels, for S0.
        training: the mode to start in.

    Raises:
        ValueError: another version.
    """

    def __init__(
        self,
        input: int,
        non_linear: bool = True,
        version: str = "S0",
        efficient: bool = False,
        affine: bool = True,
        momentum: float = 0.9,
        eps: float = 1e-5,
        groups: int = 32,
        training: bool = True,
    ) -> None:
        if version not in ("S0", "B0"):
            raise ValueError(f"EvoNorm2D has the versions 'S0' and 'B0', not {version!r}")
        kind = "EvoNormS1" if efficient and version == "S0" else f"EvoNorm{version}"
        options = {"num_groups": groups, "eps": eps, "momentum": 1 - momentum, "affine": affine}
        super().__init__(input, non_linear, formula=FORMULAS[kind], **options)
        self.norm_act = kind
        self.train(training)
