"""Where tools/ and configs/ lie, and the commands by which an installed wheel runs the tools."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
# A checkout has the two folders next to its packages; a wheel has copies in this package.
ROOT = _HERE if (_HERE / "tools").is_dir() else _HERE.parent


def run() -> None:
    """Run the tool that this command is named after: `evonorm-train-net` runs tools/train_net.py.

    An argument `configs/...` that is not in the current folder means the file of that name in ROOT.
    """
    tool = Path(sys.argv[0]).name.replace("evonorm-", "", 1).replace("-", "_") + ".py"
    arguments = [
        str(ROOT / a)
        if a.startswith("configs/") and not Path(a).exists() and (ROOT / a).exists()
        else a
        for a in sys.argv[1:]
    ]
    os.execv(sys.executable, [sys.executable, str(ROOT / "tools" / tool), *arguments])
