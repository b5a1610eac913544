"""Write the detector of a run as TorchScript, ONNX or torch.export, by Detectron2's own means.

The file takes an image (3, H, W) uint8, in the size and the colours (INPUT.FORMAT) that the model
takes, and gives boxes, classes, scores, masks. Its outputs are compared with the model's first.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

with warnings.catch_warnings():
    # Importing Detectron2 warns that TorchScript is deprecated; nothing a user could act on.
    warnings.simplefilter("ignore", FutureWarning)
    from evonorm_d2.data import register_embedded
    from evonorm_d2.export import FORMATS, export_model
    from evonorm_d2.predict import RunPredictor, read_bgr
    from evonorm_runs.command_line import run_tool
    from evonorm_runs.errors import UserError, user_errors


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a checkpoint")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument(
        "--backbone", action="store_true", help="only the backbone with its FPN: features"
    )
    parser.add_argument(
        "--image",
        type=Path,
        metavar="PICTURE",
        help="with objects, to compare outputs on (default: the first of the run's test set)",
    )
    parser.add_argument(
        "--device", default="cpu", help="of the file, if it is not ONNX (default: cpu)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    return parser.parse_args()


@run_tool("export_model.py")
def main() -> int:
    args = parse_arguments()
    if args.output.exists() and not args.overwrite:
        raise UserError(f"{args.output} exists: name another file with -o, or add --overwrite")
    register_embedded()
    predictor = RunPredictor(args.run, args.device)
    picture = args.image or predictor.first_image()
    image = predictor.input(read_bgr(picture))
    with user_errors(OSError):
        args.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        report = export_model(
            predictor.model, image, args.format, args.output, backbone=args.backbone
        )
    except UserError as error:
        raise UserError(f"{args.output}, compared on {picture}: {error}") from error
    size = "x".join(map(str, image.shape[1:]))
    objects = " and ".join(map(str, report.objects))
    found = f"{objects} objects in {picture}, " if objects else ""
    print(f"{args.output}: {args.format}, outputs {', '.join(report.outputs)}")
    by_name = ", ".join(f"{name} {value:.1e}" for name, value in report.differences.items())
    print(f"{found}largest differences to the model's outputs: {by_name}")
    own, exported = report.seconds
    print(f"{exported:.4f} seconds per image of {size} pixels, the model itself {own:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
