"""The command line of a trainer whose processes torchrun may start."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Callable

from fvcore.common.config import CfgNode

from . import distributed
from .errors import user_error_line

Results = dict[str, float]


def run_trainer(
    name: str,
    args: argparse.Namespace,
    load_config: Callable[[str, Sequence[str]], CfgNode],
    train: Callable[[CfgNode, bool], Results],
    summary: Callable[[Results], str],
) -> int:
    """Train as `args` says; a UserError becomes a line. Returns the exit status."""
    try:
        cfg = load_config(args.config_file, args.opts)
        results = train(cfg, args.resume)
    except Exception as error:
        line = user_error_line(error)
        if line is None:
            raise
        if not distributed.is_main():
            # The main process prints the same line and torchrun then stops this one, unless the
            # fault, a damaged image say, is this process's alone.
            time.sleep(5)
        print(f"{name}: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if distributed.is_main():
            print(f"{name}: stopped; continue with --resume", file=sys.stderr)
        return 130
    if distributed.is_main():
        end = f"{cfg.OUTPUT_DIR}/metrics.json"
        print(f"{summary(results)} ({end})" if results else f"trained ({end})")
    distributed.shut_down()
    return 0


def parse(description: str | None, configs: str) -> argparse.Namespace:
    """--config-file, --resume and KEY VALUE ...; `configs`: the folder of the recipes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config-file", required=True, help=f"one of {configs}")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config keys, such as MODEL.NORM EvoNormB0"
    )
    return parser.parse_intermixed_args()
