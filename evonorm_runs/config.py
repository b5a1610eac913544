"""Configs: a CfgNode of defaults, a yaml file, KEY VALUE overrides. Loading one runs no code."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

import torch
import yaml
from fvcore.common.config import CfgNode

from .errors import UserError, one_line, user_errors

# What fvcore, yacs and PyYAML raise for a wrong key, type or file.
CONFIG_ERRORS = (
    AssertionError,
    AttributeError,
    KeyError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    yaml.YAMLError,
)


def merge(cfg: CfgNode, file: str | None, overrides: Sequence[str] = ()) -> CfgNode:
    """Merge a yaml file with its _BASE_s, then KEY VALUE KEY VALUE ..., into `cfg`; returns it.

    Args:
        file: None for no file.

    Raises:
        UserError: a wrong key, value or file, or anything that could run code.
    """
    if file is not None:
        if os.path.isdir(file):
            raise UserError(f"{file} is a folder: name a config file in it")
        with _config_errors(cfg, f"{file}: "):
            try:
                cfg.merge_from_file(file, allow_unsafe=False)
            except RecursionError as error:
                raise UserError(f"{file}: its _BASE_ leads back to itself") from error
            except AttributeError as error:  # fvcore assumes that it read a dictionary
                raise UserError(f"{file}: not a config, which has KEY: VALUE lines") from error
    options = [word for word in overrides if word.startswith("--")]
    if options:
        raise UserError(f"{options[0]} stands among KEY VALUE: options come before them")
    with _config_errors(cfg, "KEY VALUE on the command line: "):
        cfg.merge_from_list(list(overrides))
    return cfg


def merge_saved(cfg: CfgNode, text: str, name: str) -> CfgNode:
    """Merge the config that a checkpoint called `name` holds into `cfg`; returns it.

    Raises:
        UserError: a wrong key or value.
    """
    with _config_errors(cfg, f"{name}: its config: "):
        cfg.merge_from_other_cfg(CfgNode.load_cfg(text))
    return cfg


@contextlib.contextmanager
def _config_errors(cfg: CfgNode, prefix: str) -> Iterator[None]:
    """Raise what fvcore raises of a change to `cfg` as a UserError, with what would be right."""
    try:
        yield
    except UserError:
        raise
    except CONFIG_ERRORS as error:
        text = one_line(error)
        if "expected str instance" in text:  # yacs joins the parts of a key
            text = "a key is no text; YAML takes NO, ON and numbers for something else"
        raise UserError(f"{prefix}{text}{_remedy(text, flat(cfg))}") from error


def _remedy(text: str, known: Mapping[str, Any]) -> str:
    missing = re.match(r"Non-existent (?:config )?key: (\S+)", text)
    if missing:
        close = difflib.get_close_matches(missing[1], known, n=1, cutoff=0.8)
        return f": did you mean {close[0]}?" if close else ": this tool has no key like it"
    wrong = re.search(r"^Type mismatch .* for config key: (\S+)", text)
    if wrong and wrong[1] in known:
        example = known[wrong[1]]
        return f", which takes a {type(example).__name__}, such as {example!r}"
    return ""


def finish(cfg: CfgNode, check: Callable[[CfgNode], None]) -> CfgNode:
    """Choose the DEVICE if none is named, check the values, freeze `cfg` and return it.

    Raises:
        UserError: no such device, or what `check` raises.
    """
    cfg.DEVICE = cfg.DEVICE or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(cfg.DEVICE)
    check(cfg)
    cfg.freeze()
    return cfg


def check_device(name: str, key: str = "DEVICE") -> None:
    """Raise a UserError if PyTorch can't compute on a device of this name."""
    with user_errors(RuntimeError, prefix=f"{key}: "):
        device = torch.device(name)
    if device.type == "cuda":  # not tried, which would take memory of a GPU that is another rank's
        if not torch.cuda.is_available():
            raise UserError(f"{key} is {name}, but PyTorch sees no GPU: set {key} cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"{key} is {name}, but there are {torch.cuda.device_count()} GPUs")
        return
    try:
        torch.ones(1, device=device).item()
    except (AssertionError, ImportError, RuntimeError) as error:
        raise UserError(f"{key} is {name}, but PyTorch can't use it here: set {key} cpu") from error


def value(cfg: CfgNode, key: str) -> Any:
    """The value of a key such as "SOLVER.MAX_ITER"."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def flat(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """All values by keys such as "SOLVER.MAX_ITER"."""
    found: dict[str, Any] = {}
    for key, inner in cfg.items():
        if isinstance(inner, CfgNode):
            found.update(flat(inner, f"{prefix}{key}."))
        else:
            found[prefix + key] = inner
    return found


def check_more_than_zero(cfg: CfgNode, *keys: str) -> None:
    """Raise a UserError if one of these values is not more than 0."""
    for key in keys:
        if not value(cfg, key) > 0:
            raise UserError(f"{key} is {value(cfg, key)}, but should be more than 0")


def check_not_negative(cfg: CfgNode, *keys: str) -> None:
    """Raise a UserError if one of these values is negative, or 2^63 or more."""
    for key in keys:
        if not 0 <= value(cfg, key) < 2**63:
            raise UserError(f"{key} is {value(cfg, key)}, but should not be negative, or huge")


def check_fraction(cfg: CfgNode, *keys: str) -> None:
    """Raise a UserError if one of these values is not in [0, 1)."""
    for key in keys:
        if not 0 <= value(cfg, key) < 1:
            raise UserError(f"{key} is {value(cfg, key)}, but should be in [0, 1)")
