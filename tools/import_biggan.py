"""Turn the released BigGAN-deep weights, as pytorch-pretrained-biggan has them, into a checkpoint.

FILE is the pytorch_model.bin that this package downloads, for 128, 256 or 512 pixels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evonorm_gan.checkpoint import save_generator_only
from evonorm_gan.config import finish_config, get_cfg
from evonorm_gan.models import Generator
from evonorm_gan.models.port import from_port
from evonorm_runs.command_line import run_tool
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import read_checkpoint


@run_tool("import_biggan.py")
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("-o", "--output", type=Path, help="default: FILE, but ending in .pth")
    parser.add_argument(
        "--truncation",
        type=float,
        default=1.0,
        metavar="T",
        help="of the z that images will be drawn from: selects the statistics (default: 1.0)",
    )
    args = parser.parse_args()
    output = args.output or args.file.with_suffix(".pth")
    described = convert(args.file, output, args.truncation)
    print(f"{output}: {described}")
    return 0


def convert(file: Path, output: Path, truncation: float) -> str:
    """Write the checkpoint. Returns a description of it."""
    if output.exists():
        raise UserError(f"{output} exists: name another file by -o, or delete it first")
    with user_errors(OSError):
        state = read_checkpoint(file)
    try:
        generator = from_port(state, truncation)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    cfg = get_cfg()
    cfg.MODEL.RESOLUTION = generator.resolution
    cfg.MODEL.NUM_CLASSES = generator.num_classes
    cfg.MODEL.NORM = generator.norm
    cfg.MODEL.G_CH = generator.ch
    cfg.MODEL.DIM_Z = generator.dim_z
    cfg.TEST.TRUNCATION = truncation
    cfg.TEST.TRUNCATE_BY = "scale"  # as the port draws z, and as its statistics were taken
    cfg.TEST.STANDING_BATCHES = 0  # the imported statistics stay
    save_generator_only(output, generator, finish_config(cfg), class_names(generator))
    r = generator.resolution
    return f"BigGAN-deep, {r}x{r}, {generator.num_classes} classes, truncation {truncation:g}"


def class_names(generator: Generator) -> list[str]:
    """The names of ImageNet's classes if the number of classes is the same, else numbers."""
    if generator.num_classes != 1000:
        return [str(i) for i in range(generator.num_classes)]
    from torchvision.models import ResNet50_Weights

    return ResNet50_Weights.IMAGENET1K_V1.meta["categories"]


if __name__ == "__main__":
    sys.exit(main())
