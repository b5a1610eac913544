"""Train and evaluate a Detectron2 detector with any norm-act, by Detectron2's command line."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

with warnings.catch_warnings():
    # Importing Detectron2 warns that TorchScript is deprecated; nothing a user could act on.
    warnings.simplefilter("ignore", FutureWarning)
    from detectron2.config import CfgNode
    from detectron2.engine import default_argument_parser, default_setup, launch
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    from evonorm_d2.check_run import check_run
    from evonorm_d2.data import register_embedded
    from evonorm_d2.data.own import use_own_data
    from evonorm_d2.run_config import load_config
    from evonorm_d2.train import evaluate, summary, train
    from evonorm_runs.command_line import run_tool
    from evonorm_runs.distributed import process_flags
    from evonorm_runs.errors import user_errors
    from evonorm_runs.files import atomic_write
    from evonorm_runs.folder import CONFIG, claimed
    from evonorm_runs.stop import on_sigterm


@process_flags(cudnn_benchmark=False)
def work(cfg: CfgNode, args: argparse.Namespace) -> None:
    """The work of each process."""
    register_embedded()
    use_own_data(cfg)
    logging.raiseExceptions = False  # what must write reports a full disk itself
    if args.eval_only:
        with kept_config(cfg):
            set_up(cfg, args)
        results = evaluate(cfg, args.resume)
    else:
        with claimed(cfg.OUTPUT_DIR, ["*.pth"], args.resume):
            set_up(cfg, args)
            results = train(cfg, args.resume)
    if comm.is_main_process() and results:
        print(f"{summary(results)} ({cfg.OUTPUT_DIR}/metrics.json)")


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    with user_errors(OSError):
        default_setup(cfg, args)
        setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="evonorm_d2")


@contextlib.contextmanager
def kept_config(cfg: CfgNode) -> Iterator[None]:
    """Put back the config.yaml of a run that is only evaluated: Detectron2 writes it anew."""
    path = Path(cfg.OUTPUT_DIR, CONFIG)
    before = path.read_bytes() if path.exists() else None
    yield
    if before is not None and comm.is_main_process():
        with atomic_write(path) as file:
            file.write(before)


@run_tool("train_net.py", stopped="stopped; continue with --resume")
def main() -> int:
    args = default_argument_parser().parse_args()
    cfg = load_config(args.config_file, args.opts)
    register_embedded()
    check_run(cfg, args.resume, args.eval_only, args.num_gpus, args.num_machines)
    with on_sigterm():  # the worker processes end by themselves
        launch(
            work,
            args.num_gpus,
            args.num_machines,
            args.machine_rank,
            args.dist_url,
            args=(cfg, args),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
