"""Train an image classifier with any norm-act. torchrun starts several processes of it."""

from __future__ import annotations

import sys

from evonorm_classifier.config import load_config
from evonorm_classifier.trainer import summary, train
from evonorm_runs.command_line import parse, run_tool, run_trainer


@run_tool("train_classifier.py", stopped="stopped; continue with --resume")
def main() -> int:
    args = parse(__doc__, "configs/classification/")
    return run_trainer(args, load_config, train, summary)


if __name__ == "__main__":
    sys.exit(main())
