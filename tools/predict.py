"""Predict on images of one's own with a detector or a classifier of a run.

A detector gives a picture of each image, and COCO's results in results.json, with a line for each
object and the image's file_name in it. Images whose names are numbers, as COCO's are, have these as
their image_id; else it is 1, 2, ... A video, such as a.mp4, gives a.mp4 with the objects drawn, and
COCO's results in a.mp4.json, whose image_id is the number of the frame, from 0.

A classifier prints the likeliest classes of each image with their probabilities. results.json has
them too, an entry for each image.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from evonorm_classifier.trained import RunClassifier, is_run
from evonorm_runs.command_line import run_tool
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import atomic_write
from evonorm_runs.folder import CONFIG
from evonorm_runs.images.files import images_of

RESULTS = "results.json"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a checkpoint")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGES", help="files and folders")
    parser.add_argument("-o", "--output", type=Path, help="a folder (default: RUN/predictions)")
    parser.add_argument(
        "--threshold", type=float, help="of a detector: least score of an object (default: 0.5)"
    )
    parser.add_argument(
        "--top", type=int, metavar="N", help="of a classifier: how many classes (default: 5)"
    )
    parser.add_argument("--device", default="", help="default: cuda if there is a GPU, else cpu")
    parser.add_argument("--overwrite", action="store_true", help="replace files of the same names")
    args = parser.parse_args()
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        parser.error(f"--threshold is {args.threshold}, but should be from 0 to 1")
    if args.top is not None and args.top < 1:
        parser.error(f"--top is {args.top}, but should be at least 1")
    folder = args.run if args.run.is_dir() else args.run.parent
    args.output = args.output or folder / "predictions"
    return args


@run_tool("predict.py")
def main() -> int:
    args = parse_arguments()
    folder = args.run if args.run.is_dir() else args.run.parent
    if not (folder / CONFIG).is_file():
        tools = "train_net.py or train_classifier.py"
        raise UserError(f"{args.run}: not a run of {tools}, which has a {CONFIG}")
    return classify(args) if is_run(args.run) else detect(args)


def classify(args: argparse.Namespace) -> int:
    if args.threshold is not None:
        raise UserError(f"--threshold is for detectors, and {args.run} is a classifier: see --top")
    paths = [path for given in args.images for path in images_of(given)]
    check_free(args, [RESULTS])
    classifier = RunClassifier(args.run, args.device)
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            found = classifier.predict(path, args.top or 5)
        except UserError as error:  # the other images are worth their time
            print(f"predict.py: {error}", file=sys.stderr)
            continue
        print(f"{path}: " + ", ".join(f"{name} {share:.4f}" for name, share in found))
        classes = [{"class": name, "probability": share} for name, share in found]
        rows.append({"file_name": str(path), "classes": classes})
    if not rows:
        return 2
    write_results(args, rows)
    print(f"{args.output}: classes of {len(rows)} images ({RESULTS})")
    return 0 if len(rows) == len(paths) else 2


def detect(args: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        # Importing Detectron2 warns that TorchScript is deprecated; nothing a user could act on.
        warnings.simplefilter("ignore", FutureWarning)
        from evonorm_d2.data import register_embedded
        from evonorm_d2.predict import RunPredictor, find_images, image_ids, read_bgr
        from evonorm_d2.video import is_video, predict_video

    if args.top is not None:
        raise UserError(f"--top is for classifiers, and {args.run} is none: see --threshold")
    threshold = 0.5 if args.threshold is None else args.threshold
    images = find_images([path for path in args.images if not is_video(path)])
    videos = find_images([path for path in args.images if is_video(path)])
    names = [RESULTS, *(f"{name}.png" for name in images)] if images else []
    check_free(args, [*names, *(f"{name}.mp4{x}" for name in videos for x in ("", ".json"))])
    register_embedded()
    predictor = RunPredictor(args.run, args.device)
    with user_errors(OSError):
        args.output.mkdir(parents=True, exist_ok=True)
    for name, path in videos.items():
        output = args.output / f"{name}.mp4"
        frames = tqdm(predict_video(predictor, path, output, threshold), unit=" frames")
        found = [predictor.results(objects, i) for i, objects in enumerate(frames)]
        write_results(args, [row for rows in found for row in rows], f"{output.name}.json")
        print(f"{output}: {sum(map(len, found))} objects in {len(found)} frames")
    if not images:
        return 0
    rows, broken = [], 0
    for (name, path), image_id in zip(tqdm(images.items()), image_ids(list(images))):
        try:
            image = read_bgr(path)
        except UserError as error:  # the other images are worth their time
            tqdm.write(f"predict.py: {error}", file=sys.stderr)
            broken += 1
            continue
        found = predictor.predict(image, threshold)
        with user_errors(OSError):
            Image.fromarray(predictor.picture(image, found)).save(args.output / f"{name}.png")
        rows += [{**row, "file_name": path.name} for row in predictor.results(found, image_id)]
    if broken == len(images):
        return 2
    write_results(args, rows)
    print(f"{args.output}: {len(rows)} objects in {len(images) - broken} images ({RESULTS})")
    return 2 if broken else 0


def check_free(args: argparse.Namespace, names: list[str]) -> None:
    """Raise a UserError if a file of these names is there and may not be replaced."""
    held = [args.output / name for name in names if (args.output / name).exists()]
    if held and not args.overwrite:
        raise UserError(f"{held[0]} exists: name another folder with -o, or add --overwrite")


def write_results(
    args: argparse.Namespace, rows: list[dict[str, Any]], name: str = RESULTS
) -> None:
    with user_errors(OSError):
        args.output.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.output / name) as file:
        file.write(json.dumps(rows).encode())


if __name__ == "__main__":
    sys.exit(main())
