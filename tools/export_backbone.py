"""Make a file for a detector's MODEL.WEIGHTS of a classifier that train_classifier.py trained.

The file says what a config must have to use it, and train_net.py refuses another config in one line
with the keys to set. With --from, FILE is a published ResNet of another project instead.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

with warnings.catch_warnings():
    # Importing Detectron2 warns that TorchScript is deprecated; nothing a user could act on.
    warnings.simplefilter("ignore", FutureWarning)
    from evonorm_classifier.export import read_run
    from evonorm_d2.backbone_file import write_backbone
    from evonorm_d2.public_weights import SOURCES, read_public
    from evonorm_runs.command_line import run_tool
    from evonorm_runs.errors import UserError


@run_tool("export_backbone.py")
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a checkpoint")
    parser.add_argument("-o", "--output", type=Path, default=Path("backbone.pkl"), metavar="OUT")
    parser.add_argument(
        "--from",
        dest="source",
        choices=SOURCES,
        help="RUN is a file: a ResNet or ResNeXt with BatchNorm of torchvision or timm, or R-50-GN "
        "or R-101-GN of Detectron2's model zoo",
    )
    parser.add_argument(
        "--norm",
        default="",
        help="with --from: what MODEL.RESNETS.NORM shall be, such as BN-ReLU in place of BN",
    )
    args = parser.parse_args()
    if args.output.suffix != ".pkl":
        raise UserError(f"-o {args.output}: Detectron2 reads such a file if its name ends in .pkl")
    if args.source:
        weights, settings = read_public(args.source, args.run, args.norm)
        write_backbone(args.output, weights, settings, f"{args.source}, {args.run.name}")
        print(f"{args.output}: {_lines(settings)}")
        return 0
    if args.norm:
        raise UserError("--norm goes with --from: a run's weights are of the run's MODEL.NORM")
    trained = read_run(args.run)
    author = f"{trained.description} ({args.run})"
    write_backbone(
        args.output, trained.weights, trained.settings, author, trained.accuracy, trained.config
    )
    accuracy = "" if trained.accuracy is None else f", accuracy {trained.accuracy:.2f} %"
    print(f"{args.output}: {trained.description}{accuracy}; {_lines(trained.settings)}")
    return 0


def _lines(settings: dict) -> str:
    return "for " + ", ".join(f"{key} {value!r}" for key, value in settings.items())


if __name__ == "__main__":
    sys.exit(main())
