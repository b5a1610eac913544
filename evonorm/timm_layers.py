"""What timm's layers are, by their classes' names: timm itself is never imported here."""

from __future__ import annotations

from torch import nn

# timm's layer: our name, and what it computes without activation if that is not the affine map.
EVONORMS = {
    "EvoNorm2dB0": ("EvoNormB0", ""),
    "EvoNorm2dB1": ("EvoNormB1", ""),
    "EvoNorm2dB2": ("EvoNormB2", ""),
    "EvoNorm2dS0": ("EvoNormS0", ""),
    "EvoNorm2dS0a": ("EvoNormS0", "x / std_g(x)"),
    "EvoNorm2dS1": ("EvoNormS1", ""),
    "EvoNorm2dS1a": ("EvoNormS1", "x / std_g(x)"),
    "EvoNorm2dS2": ("EvoNormS2", ""),
    "EvoNorm2dS2a": ("EvoNormS2", "x / rms_g(x)"),
    "FilterResponseNormTlu2d": ("FRN", ""),
}
_PLAIN = ("GroupNorm", "GroupNorm1")
_WITH_ACTIVATION = ("BatchNormAct2d", "SyncBatchNormAct", "GroupNormAct", "GroupNorm1Act")


def _is_timms(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "timm"


def is_evonorm(module: nn.Module) -> bool:
    """Whether it is an EvoNorm of timm's that is one of ours, too."""
    if not _is_timms(module) or type(module).__name__ not in EVONORMS:
        return False
    act = getattr(module, "act", None)  # S1 and S2 may be given another one than SiLU
    return not module.apply_act or act is None or type(act).__name__ in ("SiLU", "Swish")


def is_known_norm(module: nn.Module) -> bool:
    """Whether it is timm's BatchNorm or GroupNorm, with an activation in it or without."""
    return _is_timms(module) and type(module).__name__ in (*_PLAIN, *_WITH_ACTIVATION)


def inner_activation(norm: nn.Module) -> str:
    """The class of what a norm of timm's does after normalising; "" if nothing."""
    if not is_known_norm(norm):
        return ""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    names = [type(m).__name__ for m in parts if m is not None and not isinstance(m, nn.Identity)]
    return " + ".join(names)


def own_options(layer: nn.Module) -> dict[str, float | int]:
    """The options of an EvoNorm of timm's, as ours are named."""
    theirs = {"num_groups": "groups", "eps": "eps", "momentum": "momentum"}
    return {ours: getattr(layer, name) for ours, name in theirs.items() if hasattr(layer, name)}
