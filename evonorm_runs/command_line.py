"""Command lines: a user's error as one line, and the arguments of a trainer."""

from __future__ import annotations

import argparse
import functools
import os
import select
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable

from . import distributed
from .errors import one_line, printable, user_error_line
from .stop import Stopped

if TYPE_CHECKING:  # the benchmarks of layers run where fvcore is not installed
    from fvcore.common.config import CfgNode

Results = dict[str, float]


def run_tool(
    name: str, stopped: str = "stopped", kinds: tuple[type[BaseException], ...] = ()
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorator of a tool's `main`, which returns its exit status.

    After a UserError, it prints one line and returns 2. After Ctrl-C, it prints one line and
    returns 130, and for a training that SIGTERM stopped, 143. Where the reader of its output
    has ended, such as `head`, it ends too and returns 141, as a shell says it. Any other error is a
    fault of the program and keeps its traceback.

    Args:
        name: the tool's name, which begins the line.
        stopped: what the line says after Ctrl-C.
        kinds: other errors that are the user's in this tool.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(*args: Any, **kwargs: Any) -> int:
            try:
                status = main(*args, **kwargs)
                sys.stdout.flush()
                return status
            except Stopped as error:
                if distributed.is_main():
                    print(f"{name}: {error}", file=sys.stderr)
                return 143
            except Exception as error:
                if isinstance(error, BrokenPipeError) and _nobody_reads():
                    return 141
                line = one_line(error) if isinstance(error, kinds) else user_error_line(error)
                if line is None:
                    raise
                if not distributed.is_main():
                    # Most faults occur in all processes: the main one prints the line, and torchrun
                    # stops this one meanwhile. It prints its own faults, such as a damaged image.
                    time.sleep(5)
                print(printable(f"{name}: {line}"), file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                if distributed.is_main():
                    print(f"{name}: {stopped}", file=sys.stderr)
                return 130

        return run

    return decorate


def _nobody_reads() -> bool:
    """Whether the reader of the standard output has ended; what is printed is lost from then on."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def run_trainer(
    args: argparse.Namespace,
    load_config: Callable[[str, Sequence[str]], CfgNode],
    train: Callable[[CfgNode, bool], Results],
    summary: Callable[[Results], str],
) -> int:
    """Train as `args` says. Returns the exit status."""
    cfg = load_config(args.config_file, args.opts)
    results = train(cfg, args.resume)
    if distributed.is_main():
        end = f"{cfg.OUTPUT_DIR}/metrics.json"
        print(f"{summary(results)} ({end})" if results else f"trained ({end})")
    distributed.shut_down()
    return 0


def parse(
    description: str | None, configs: str, more: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """Parse --config-file, --resume and KEY VALUE ...

    Args:
        configs: the folder of the recipes.
        more: further options of one value each, with their help.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config-file", required=True, help=f"one of {configs}")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR"
    )
    for option, about in (more or {}).items():
        parser.add_argument(option, help=about)
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config keys, such as MODEL.NORM EvoNormB0"
    )
    return parser.parse_intermixed_args()
