"""Check every data set of a detection config, with all its images. Each fault is a line.

The exit status is 0, or 2 if training would refuse anything.
"""

from __future__ import annotations

import argparse
import sys
import warnings

with warnings.catch_warnings():
    # Importing Detectron2 warns that TorchScript is deprecated; nothing a user could act on.
    warnings.simplefilter("ignore", FutureWarning)
    from evonorm_d2.data import register_embedded
    from evonorm_d2.data.check import find_faults
    from evonorm_d2.run_config import load_config
    from evonorm_runs.command_line import run_tool


@run_tool("check_data.py")
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, help="the config to train with")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys, as in training")
    args = parser.parse_intermixed_args()
    cfg = load_config(args.config_file, args.opts)
    register_embedded()
    names = (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    refused = told = 0
    for finding in find_faults(cfg, *names, every_image=True):
        print(finding.line if finding.refused else f"{finding.line} (a warning)")
        refused += finding.refused
        told += not finding.refused
    print(f"{', '.join(names[0] + names[1])}: {refused} faults, {told} warnings")
    return 2 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
