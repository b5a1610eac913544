"""Train an image classifier with any norm-act; several processes, by torchrun."""

from __future__ import annotations

import argparse
import sys
import time

from evonorm.errors import user_error_line
from evonorm_gan import distributed
from evonorm_repro.classifier.config import load_config
from evonorm_repro.classifier.trainer import summary, train


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, help="one of configs/classification/")
    parser.add_argument(
        "--resume", action="store_true", help="go on after the last whole epoch in OUTPUT_DIR"
    )
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config keys, such as MODEL.NORM EvoNormB0"
    )
    return parser.parse_intermixed_args()


def main() -> int:
    args = parse()
    try:
        cfg = load_config(args.config_file, args.opts)
        results = train(cfg, args.resume)
    except Exception as error:
        line = user_error_line(error)
        if line is None:
            raise
        if not distributed.is_main():
            # The main process prints the same line and torchrun then stops this one, unless the
            # fault, a damaged image say, is this process's alone.
            time.sleep(5)
        print(f"train_classifier.py: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if distributed.is_main():
            print("train_classifier.py: stopped; continue with --resume", file=sys.stderr)
        return 130
    if distributed.is_main():
        end = f"{cfg.OUTPUT_DIR}/metrics.json"
        print(f"{summary(results)} ({end})" if results else f"trained ({end})")
    distributed.shut_down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
