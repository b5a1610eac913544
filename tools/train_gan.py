"""Train BigGAN-deep with any norm-act. torchrun starts several processes, on one node or more."""

from __future__ import annotations

import sys
from pathlib import Path

from evonorm_gan.config import load_config
from evonorm_gan.evaluation.periodic import summary
from evonorm_gan.trainer import train
from evonorm_runs.command_line import parse, run_tool, run_trainer

MORE = {
    "--init": "start from the weights of a checkpoint or an import (MODEL.INIT)",
    "--freeze-d": "keep so many first blocks of the discriminator as they are (SOLVER.FREEZE_D)",
    "--resume-from": "go on from this checkpoint; in a new OUTPUT_DIR, if it is another run's",
}


@run_tool("train_gan.py", stopped="stopped; continue with --resume")
def main() -> int:
    args = parse(__doc__, "configs/gan/", MORE)
    keys = {"MODEL.INIT": args.init, "SOLVER.FREEZE_D": args.freeze_d}
    args.opts = [x for key, given in keys.items() if given for x in (key, given)] + args.opts
    if args.resume_from:
        args.resume = Path(args.resume_from)
    return run_trainer(args, load_config, train, summary)


if __name__ == "__main__":
    sys.exit(main())
