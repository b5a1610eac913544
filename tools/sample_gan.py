"""Draw images from a trained generator as a PNG or as files by the thousand, or export it.

Several processes draw `images` together: torchrun --nproc_per_node=8 tools/sample_gan.py images ...
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor, nn

from evonorm_gan.checkpoint import find_checkpoint, load_generator
from evonorm_gan.export import export_onnx, export_torchscript
from evonorm_gan.image_set import write_image_set
from evonorm_gan.sampling import (
    TRUNCATE_BY,
    check_statistics,
    class_grid,
    find_class,
    generate,
    interpolate,
    latents,
    standing_statistics,
    tile,
    write_png,
)
from evonorm_runs import distributed
from evonorm_runs.command_line import run_tool
from evonorm_runs.config import check_device
from evonorm_runs.distributed import process_flags
from evonorm_runs.errors import UserError, printable, user_errors
from evonorm_runs.files import PARTIAL, sha256

MOST = 10_000  # rows or columns of a picture, or batches: more would fill the memory

# Each command takes the generator and its classes, and returns the picture and its caption.


def grid(G: nn.Module, classes: list[str], args: argparse.Namespace) -> tuple[Tensor, str]:
    chosen = [find_class(classes, name) for name in args.classes or classes[:10]]
    take_statistics(G, args, args.truncation)
    picture = class_grid(
        G,
        chosen,
        args.per_class,
        args.seed,
        args.truncation,
        args.truncate_by,
        batch_size=args.batch_size,
    )
    return picture, f"rows are the classes {', '.join(classes[i] for i in chosen)}; columns share z"


def sheets(G: nn.Module, classes: list[str], args: argparse.Namespace) -> str:
    """A folder of grids, which together have a row of each class; z is the same in all."""
    take_statistics(G, args, args.truncation)
    made = args.output.with_name(f"{args.output.name}{PARTIAL}")
    shutil.rmtree(made, ignore_errors=True)  # of a call that was killed
    made.mkdir(parents=True)
    width = len(str(len(classes) - 1))
    lines = []
    for start in range(0, len(classes), args.rows):
        chosen = range(start, min(start + args.rows, len(classes)))
        picture = class_grid(
            *(G, chosen, args.per_class, args.seed, args.truncation, args.truncate_by),
            batch_size=args.batch_size,
        )
        name = f"{chosen[0]:0{width}d}-{chosen[-1]:0{width}d}.png"
        write_png(made / name, picture)
        lines.append(f"{name}: {'; '.join(classes[i] for i in chosen)}\n")
    (made / "classes.txt").write_text("".join(lines), encoding="utf-8")
    made.rename(args.output)
    return f"{len(lines)} sheets of all {len(classes)} classes, whose rows classes.txt names"


def interpolation(G: nn.Module, classes: list[str], args: argparse.Namespace) -> tuple[Tensor, str]:
    y = [find_class(classes, name) for name in args.classes]
    if len(y) != 1 + (args.along != "z"):
        wanted = "one class" if args.along == "z" else "two classes"
        raise UserError(f"--along {args.along} takes {wanted}, but --classes gives {len(y)}")
    take_statistics(G, args, args.truncation)
    z, _ = draw(G, 2 * args.rows, args, args.truncation)
    start, end = z[: args.rows], z[args.rows :]
    ends = (start, start if args.along == "y" else end)
    picture = interpolate(G, ends, (y[0], y[-1]), args.steps, batch_size=args.batch_size)
    return picture, f"each row moves along {args.along}: {' to '.join(classes[i] for i in y)}"


def truncation(G: nn.Module, classes: list[str], args: argparse.Namespace) -> tuple[Tensor, str]:
    chosen = None if args.class_name is None else find_class(classes, args.class_name)
    rows = []
    for value in args.values:
        take_statistics(G, args, value)
        z, y = draw(G, args.columns, args, value, chosen)
        rows += generate(G, z, y, args.batch_size)
    picture = tile(torch.cat(rows), args.columns)
    return picture, f"rows are the truncations {', '.join(f'{t:g}' for t in args.values)}"


def image(G: nn.Module, classes: list[str], args: argparse.Namespace) -> tuple[Tensor, str]:
    chosen = find_class(classes, args.class_name)
    take_statistics(G, args, args.truncation)
    z, y = draw(G, 1, args, args.truncation, chosen)
    return next(generate(G, z, y))[0], f"class {classes[chosen]}, seed {args.seed}"


def export(G: nn.Module, args: argparse.Namespace) -> str:
    take_statistics(G, args, args.truncation)
    write = {"torchscript": export_torchscript, "onnx": export_onnx}[args.format]
    difference = write(G, args.output)
    return (
        f"takes z (N, {G.dim_z}) float32 and y (N,) int64; its images in [-1, 1] differ from the "
        f"generator's by {difference:.1e} at most"
    )


def images(G: nn.Module, classes: list[str], args: argparse.Namespace) -> str:
    """The images that eval_gan.py draws, if the numbers and seeds are alike."""
    num = args.num or args.own.TEST.NUM_SAMPLES
    take_statistics(G, args, args.truncation, args.seed)
    z, y = draw(G, num, args, args.truncation)
    about, chosen = "classes at random", None
    if args.balanced or args.classes:
        chosen = [find_class(classes, name) for name in args.classes or ()]
        chosen = chosen or list(range(len(classes)))
        y = torch.tensor(chosen).repeat(-(-num // len(chosen)))[:num]
        about = f"{len(chosen)} classes in turn"
    settings = {
        "checkpoint": sha256(find_checkpoint(args.checkpoint)),
        "-n": num,
        "classes": chosen,
        "--seed": args.seed,
        "--truncation": args.truncation,
        "--truncate-by": args.truncate_by,
        "--standing-batches": args.standing_batches,
        "--no-ema": args.no_ema,
        "batch size": args.batch_size,
        "--device": torch.device(args.device).type,
    }
    write_image_set(G, z, y, args.batch_size, args.output, settings)
    return f"{num} images, {about}, seed {args.seed}"


def draw(
    G: nn.Module,
    num: int,
    args: argparse.Namespace,
    truncation: float | None,
    class_index: int | None = None,
) -> tuple[Tensor, Tensor]:
    """z and y, as :func:`latents` gives them for the seed and the way of truncation in `args`."""
    return latents(
        num, G.dim_z, G.num_classes, args.seed, truncation, class_index, args.truncate_by
    )


def take_statistics(
    G: nn.Module, args: argparse.Namespace, truncation: float | None, seed: int = 0
) -> None:
    """For batch-dependent norms; in pictures the same whatever --seed is."""
    by = args.truncate_by
    check_statistics(G, args.own, args.standing_batches, truncation, by)
    standing_statistics(G, args.standing_batches, args.batch_size, seed, truncation, by)


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """A type for argparse: an integer from `least` to `most`."""

    def integer(text: str) -> int:
        if not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}, or huge")
        return int(text)

    return integer


def positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return float(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, about: str, draw: Callable | None, truncated: bool = True) -> Any:
        c = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        c.set_defaults(draw=draw)
        c.add_argument("checkpoint", type=Path, help="a checkpoint, or a run (its last one)")
        c.add_argument("-o", "--output", type=Path, required=True, help="a new file to write")
        c.add_argument("--no-ema", action="store_true", help="use the weights without averaging")
        c.add_argument("--device", help="default: cuda if PyTorch sees a GPU, else cpu")
        c.add_argument(
            "--standing-batches",
            type=whole(0),
            help="for the statistics of a batch-dependent norm; 0 keeps the checkpoint's "
            "(default: the run's TEST.STANDING_BATCHES)",
        )
        if truncated:
            c.add_argument(
                "--truncation",
                type=positive,
                help="of z (default: the checkpoint's TEST.TRUNCATION)",
            )
        else:
            c.set_defaults(truncation=None)
        c.add_argument(
            "--truncate-by",
            choices=TRUNCATE_BY,
            help="resample: draw z again outside of +-TRUNCATION; scale: TRUNCATION times a z "
            "within +-2 (default: the checkpoint's TEST.TRUNCATE_BY; scale for released weights)",
        )
        return c

    c = command("grid", "one class per row, one z per column", grid)
    c.add_argument("--classes", nargs="+", help="names or indices (default: the first 10)")
    c.add_argument("--per-class", type=whole(1), default=8, help="default: 8")

    c = command("sheets", "grids of all classes, as a folder of PNGs", None)
    c.add_argument("--per-class", type=whole(1), default=8, help="default: 8")
    c.add_argument("--rows", type=whole(1), default=25, help="of a sheet (default: 25)")

    c = command("interpolate", "straight lines between two z or two classes", interpolation)
    c.add_argument("--along", choices=("z", "y", "both"), default="z", help="default: z")
    c.add_argument("--classes", nargs="+", required=True, help="one class for z, else two")
    c.add_argument("--rows", type=whole(1), default=4, help="default: 4")
    c.add_argument("--steps", type=whole(2), default=8, help="images per row (default: 8)")

    c = command("truncation", "one truncation per row, one z per column", truncation, False)
    values = [0.2, 0.4, 0.6, 0.8, 1.0, 2.0]
    c.add_argument("--values", type=positive, nargs="+", default=values, help=f"default: {values}")
    c.add_argument("--class", dest="class_name", help="default: a random one per column")
    c.add_argument("--columns", type=whole(1), default=8, help="default: 8")

    c = command("image", "a single image", image)
    c.add_argument("--class", dest="class_name", required=True, help="name or index")

    c = command("images", "many images, as a folder, a .zip or an .npz", None)
    c.add_argument("-n", "--num", type=whole(1, 10**7), help="default: TEST.NUM_SAMPLES")
    of = c.add_mutually_exclusive_group()
    of.add_argument("--balanced", action="store_true", help="all classes in turn, not at random")
    of.add_argument("--classes", nargs="+", help="names or indices, in turn")

    for c in commands.choices.values():
        c.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="of z (default: 0)")

    c = command("export", "write the generator as TorchScript or ONNX", None)
    c.add_argument("--format", choices=("torchscript", "onnx"), required=True)
    return parser.parse_args()


def run(args: argparse.Namespace) -> str:
    """Carry out a command. Returns a description of the result."""
    if args.output.exists():
        raise UserError(f"{args.output}: exists already; delete it, or choose another name")
    if args.draw and args.output.suffix != ".png":
        raise UserError(f"{args.output}: the name should end in .png, as the picture is a PNG")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device, "--device")
    if args.command == "images":
        device = str(distributed.init(device))
    args.device = device
    G, cfg, classes, step = load_generator(args.checkpoint, not args.no_ema, device)
    args.own = cfg
    args.batch_size = cfg.TEST.BATCH_SIZE
    if args.standing_batches is None:
        args.standing_batches = cfg.TEST.STANDING_BATCHES
    if args.truncation is None:
        args.truncation = cfg.TEST.TRUNCATION
    args.truncate_by = args.truncate_by or cfg.TEST.TRUNCATE_BY
    with user_errors(OSError, prefix=f"{args.output}: "):
        if args.draw:
            picture, about = args.draw(G, classes, args)
            write_png(args.output, picture)
        elif args.command == "export":
            about = export(G, args)
        else:
            about = {"images": images, "sheets": sheets}[args.command](G, classes, args)
    return f"{args.output}: {about} (step {step})"


@run_tool("sample_gan.py", stopped="stopped; for `images`, the same command goes on")
@process_flags(cudnn_benchmark=False)
def main() -> int:
    args = parse_arguments()
    done = printable(run(args))
    if distributed.is_main():
        print(done)
    distributed.shut_down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
