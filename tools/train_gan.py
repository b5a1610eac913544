"""Train BigGAN-deep with any norm-act. torchrun starts several processes, on one node or more."""

from __future__ import annotations

import sys

from evonorm_gan.config import load_config
from evonorm_gan.trainer import summary, train
from evonorm_runs.command_line import parse, run_tool, run_trainer


@run_tool("train_gan.py", stopped="stopped; continue with --resume")
def main() -> int:
    args = parse(__doc__, "configs/gan/")
    return run_trainer(args, load_config, train, summary)


if __name__ == "__main__":
    sys.exit(main())
