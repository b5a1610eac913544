"""Predict on images with the detector of a run: a picture of each, and COCO's results in one file.

The file results.json holds a line of COCO's results for each object, with the image's file_name.
Images whose names are numbers, as COCO's are, have these as their image_id; else it is 1, 2, ...
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from PIL import Image
from tqdm import tqdm

with warnings.catch_warnings():
    # Importing Detectron2 warns that TorchScript is deprecated; nothing a user could act on.
    warnings.simplefilter("ignore", FutureWarning)
    from evonorm_d2.data import register_digits
    from evonorm_d2.predict import RunPredictor, find_images, image_ids, read_bgr
    from evonorm_runs.command_line import run_tool
    from evonorm_runs.errors import UserError, user_errors
    from evonorm_runs.files import atomic_write

RESULTS = "results.json"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a checkpoint")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGES", help="files and folders")
    parser.add_argument("-o", "--output", type=Path, help="a folder (default: RUN/predictions)")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="least score of an object (default: 0.5)"
    )
    parser.add_argument("--device", default="", help="default: cuda if there is a GPU, else cpu")
    parser.add_argument("--overwrite", action="store_true", help="replace files of the same names")
    args = parser.parse_args()
    if not 0 <= args.threshold <= 1:
        parser.error(f"--threshold is {args.threshold}, but should be from 0 to 1")
    folder = args.run if args.run.is_dir() else args.run.parent
    args.output = args.output or folder / "predictions"
    return args


@run_tool("predict.py")
def main() -> int:
    args = parse_arguments()
    images = find_images(args.images)
    outputs = [args.output / RESULTS, *(args.output / f"{name}.png" for name in images)]
    held = [path for path in outputs if path.exists()]
    if held and not args.overwrite:
        raise UserError(f"{held[0]} exists: name another folder with -o, or add --overwrite")
    register_digits()
    predictor = RunPredictor(args.run, args.device)
    with user_errors(OSError):
        args.output.mkdir(parents=True, exist_ok=True)
    rows, broken = [], 0
    for (name, path), image_id in zip(tqdm(images.items()), image_ids(list(images))):
        try:
            image = read_bgr(path)
        except UserError as error:  # the other images are worth their time
            tqdm.write(f"predict.py: {error}", file=sys.stderr)
            broken += 1
            continue
        found = predictor.predict(image, args.threshold)
        with user_errors(OSError):
            Image.fromarray(predictor.picture(image, found)).save(args.output / f"{name}.png")
        rows += [{**row, "file_name": path.name} for row in predictor.results(found, image_id)]
    with atomic_write(args.output / RESULTS) as file:
        file.write(json.dumps(rows).encode())
    print(f"{args.output}: {len(rows)} objects in {len(images) - broken} images ({RESULTS})")
    return 2 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
