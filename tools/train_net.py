"""Train and evaluate a detector with Detectron2, norm-acts included: Detectron2's command line."""

from __future__ import annotations

import argparse
import sys
import warnings

with warnings.catch_warnings():
    # Importing Detectron2 warns that TorchScript is deprecated; nothing a user could act on.
    warnings.simplefilter("ignore", FutureWarning)
    from detectron2.config import CfgNode
    from detectron2.engine import default_argument_parser, default_setup, launch
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    from evonorm_d2.data import register_digits
    from evonorm_d2.run_config import load_config
    from evonorm_d2.train import check_run, evaluate, summary, train
    from evonorm_runs.command_line import run_tool
    from evonorm_runs.distributed import process_flags
    from evonorm_runs.errors import user_errors


@process_flags(cudnn_benchmark=False)
def work(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What each process does."""
    register_digits()
    with user_errors(OSError):
        default_setup(cfg, args)
        setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="evonorm_d2")
    results = (evaluate if args.eval_only else train)(cfg, args.resume)
    if comm.is_main_process() and results:
        print(f"{summary(results)} ({cfg.OUTPUT_DIR}/metrics.json)")


@run_tool("train_net.py", stopped="stopped; continue with --resume")
def main() -> int:
    args = default_argument_parser().parse_args()
    cfg = load_config(args.config_file, args.opts)
    register_digits()
    check_run(cfg, args.resume, args.eval_only, args.num_gpus, args.num_machines)
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
