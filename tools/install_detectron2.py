#!/usr/bin/env python
"""Install Detectron2, which has no release on PyPI, into the Python that runs this file.

1. If `import detectron2` already works, nothing is done.
2. Otherwise the repository is built at a pinned commit (needs git, a C++ compiler and PyTorch).
3. If that fails, PyPI's copy of release 0.6 is taken. Its archive lacks the C++ sources, so only
   its Python code is installed, after the repairs listed in REPAIRS. Mask R-CNN needs none of the
   compiled operators: its ROIAlign and NMS are torchvision's.

In both cases the package is first unpacked and imported in a temporary folder, then renamed into
place.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

REPOSITORY = "https://github.com/facebookresearch/detectron2"
COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
ARCHIVE = "pb1-detectron2==0.6"
ARCHIVE_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

# model_zoo imports pkg_resources: setuptools 80 warns about it in every run, 82 dropped it.
BUILD_TOOLS = ["setuptools>=64,<80", "wheel", "ninja"]

# Git gives up at once on a password prompt and after 30 s on a connection that is stuck.
GIT_SETTINGS = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
    "GIT_HTTP_LOW_SPEED_TIME": "30",
}
GIT_TIMEOUT_S = 15

MODULES = ["modeling", "engine", "evaluation", "data", "model_zoo", "export", "projects.point_rend"]

# Stands in for the compiled module. It can be imported; using an operator names what is missing.
MISSING_OPERATORS = '''"""Stand-in for the compiled operators that this copy of Detectron2 lacks."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise RuntimeError(
        f"{name} is a compiled operator and this copy of Detectron2 has none: "
        "build Detectron2 from its repository to use deformable convolutions or rotated boxes"
    )
'''
_IMPORT_C = ("from detectron2 import _C\n", "from detectron2 import _missing_operators as _C\n")

# file -> [(text expected there, its replacement)]
REPAIRS = {
    "layers/deform_conv.py": [_IMPORT_C],
    "layers/roi_align_rotated.py": [_IMPORT_C],
    "layers/rotated_boxes.py": [_IMPORT_C],
    "layers/nms.py": [
        (
            "    return torch.ops.detectron2.nms_rotated(",
            "    from detectron2 import _missing_operators as _C\n\n    return _C.nms_rotated(",
        )
    ],
    # As in later versions: without the compiled COCO evaluation, the official one runs.
    "evaluation/coco_evaluation.py": [
        (
            "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
            "try:\n    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
            "except ImportError:\n    COCOeval_opt = COCOeval\n",
        ),
        (
            "self._use_fast_impl = use_fast_impl\n",
            "self._use_fast_impl = use_fast_impl and COCOeval_opt is not COCOeval\n",
        ),
    ],
    # Caffe2 is no longer a part of PyTorch.
    "export/__init__.py": [
        ("from .api import *\n", "try:\n    from .api import *\nexcept ImportError:\n    pass\n")
    ],
    # Pillow 10 dropped the alias.
    "data/transforms/transform.py": [("interp=Image.LINEAR", "interp=Image.BILINEAR")],
}

# NumPy 1.24 dropped its aliases of Python's own types.
NUMPY_ALIAS = re.compile(r"\bnp\.(bool|int|float|str|object)\b")

SETUP_PY = """from setuptools import find_packages, setup

projects = {
    "detectron2.projects.point_rend": "projects/PointRend/point_rend",
    "detectron2.projects.deeplab": "projects/DeepLab/deeplab",
    "detectron2.projects.panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}
setup(
    name="detectron2",
    version="0.6+python.only",
    description="Python code of Detectron2 0.6, without its compiled operators",
    url="https://github.com/facebookresearch/detectron2",
    packages=find_packages(include=["detectron2", "detectron2.*"]) + list(projects),
    package_dir=projects,
    package_data={"detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]},
    install_requires=[
        "Pillow>=7.1",
        "cloudpickle",
        "fvcore>=0.1.5,<0.1.6",
        "hydra-core>=1.1",
        "iopath>=0.1.7,<0.1.10",
        "matplotlib",
        "omegaconf>=2.1",
        "packaging",
        "pycocotools>=2.0.2",
        "setuptools<80",
        "tabulate",
        "tensorboard",
        "termcolor>=1.1",
        "tqdm>4.29.0",
        "yacs>=0.1.8",
    ],
)
"""


class InstallError(Exception):
    """Why Detectron2 could not be installed, in one line."""


def replace_once(text: str, old: str, new: str, where: str) -> str:
    """Return `text` with its only `old` replaced by `new`; InstallError unless it is there once."""
    count = text.count(old)
    if count != 1:
        raise InstallError(f"{where}: expected {old.strip()!r} once, found it {count} times")
    return text.replace(old, new)


def repair_numpy_aliases(text: str) -> str:
    """Return source `text` with `np.bool`, `np.int`, … replaced by Python's own types."""
    return NUMPY_ALIAS.sub(r"\1", text)


def repair(tree: Path) -> None:
    """Repair the unpacked archive of release 0.6 at `tree`, which then builds without C++."""
    package = tree / "detectron2"
    for name, replacements in REPAIRS.items():
        text = (package / name).read_text(encoding="utf-8")
        for old, new in replacements:
            text = replace_once(text, old, new, f"detectron2/{name}")
        (package / name).write_text(text, encoding="utf-8")
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(repair_numpy_aliases(text), encoding="utf-8")
    (package / "_missing_operators.py").write_text(MISSING_OPERATORS, encoding="utf-8")
    (tree / "setup.py").write_text(SETUP_PY, encoding="utf-8")


def check_sha256(path: Path, expected: str) -> None:
    """Raise InstallError unless the file at `path` has the SHA-256 `expected`."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise InstallError(f"{path.name}: its SHA-256 is {found}, expected {expected}")


def importable() -> str | None:
    """Version and place of the Detectron2 that this Python imports, or None."""
    try:
        import detectron2
    except ImportError:
        return None
    # A plain folder of that name has no version.
    version = getattr(detectron2, "__version__", None)
    return version and f"{version} at {Path(detectron2.__file__).parent}"


def pip(*arguments: str) -> None:
    """Run pip in this Python, with the user's configuration; InstallError where it fails."""
    command = [sys.executable, "-m", "pip", "--quiet", *arguments]
    if subprocess.run(command, env={**os.environ, **GIT_SETTINGS}).returncode:
        raise InstallError(f"this failed, for the reason above: {' '.join(command)}")


def reach_repository() -> None:
    """Raise InstallError unless git reaches the repository within GIT_TIMEOUT_S."""
    try:
        subprocess.run(
            ["git", "ls-remote", REPOSITORY, "HEAD"],
            env={**os.environ, **GIT_SETTINGS},
            timeout=GIT_TIMEOUT_S,
            check=True,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        raise InstallError("git is not installed") from None
    except subprocess.TimeoutExpired:
        raise InstallError(f"{REPOSITORY} gave no answer in {GIT_TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip() or f"git exited with status {error.returncode}"
        raise InstallError(reason.splitlines()[-1]) from None


def fetch_archive(folder: Path) -> Path:
    """Download the release through pip, check and unpack it in `folder`; return its source tree."""
    # pip checks the hash before it runs anything from the archive.
    (folder / "requirement.txt").write_text(f"{ARCHIVE} --hash=sha256:{ARCHIVE_SHA256}\n")
    try:
        pip(
            *("download", "--no-deps", "--no-binary=:all:", "--no-build-isolation"),
            *("--require-hashes", "--requirement", str(folder / "requirement.txt")),
            *("--dest", str(folder)),
        )
    except InstallError:
        raise InstallError(
            f"pip did not hand over {ARCHIVE}, for the reason above (pip 26.3 and later refuse it: "
            f"one of its extras names a URL); give access to {REPOSITORY}, or choose an older pip"
        ) from None
    archive = next(folder.glob("*.tar.gz"))
    check_sha256(archive, ARCHIVE_SHA256)
    shutil.unpack_archive(archive, folder)
    return folder / archive.name[: -len(".tar.gz")]


def check_imports(folder: Path) -> None:
    """Import the parts of the Detectron2 in `folder` in a Python of its own."""
    code = "\n".join(f"import detectron2.{name}" for name in MODULES)
    # Detectron2 imports the plugin of that name, which may need the new Detectron2 in its place.
    settings = {name: os.environ[name] for name in os.environ if name != "DETECTRON2_ENV_MODULE"}
    # "-c" imports from the working directory first.
    command = [sys.executable, "-W", "ignore", "-c", code]
    if subprocess.run(command, cwd=folder, env=settings).returncode:
        raise InstallError("the new Detectron2 can't be imported, for the reason above")


def install(source: str, site_packages: Path) -> None:
    """Install `source` (what pip accepts) and its requirements, the package itself in one move."""
    with tempfile.TemporaryDirectory(prefix=".detectron2-", dir=site_packages) as name:
        aside = Path(name)
        pip("install", "--no-deps", "--no-build-isolation", "--target", str(aside), source)
        (information,) = aside.glob("detectron2-*.dist-info")
        requires = metadata.Distribution.at(information).requires or []
        pip("install", *(text for text in requires if "extra ==" not in text))
        check_imports(aside)
        # The package goes first: after that, an interruption leaves nothing that stops a new run.
        for path in sorted(aside.iterdir(), key=lambda path: path.name != "detectron2"):
            path.rename(site_packages / path.name)


def install_archive(site_packages: Path) -> None:
    """Install the repaired Python code of PyPI's copy of release 0.6."""
    with tempfile.TemporaryDirectory() as folder:
        tree = fetch_archive(Path(folder))
        repair(tree)
        install(str(tree), site_packages)


def install_detectron2() -> str:
    """Install Detectron2 unless it can be imported; return what was done, in plain words."""
    found = importable()
    if found:
        return f"Detectron2 {found} is already installed; nothing to do."
    if importlib.util.find_spec("torch") is None:
        raise InstallError("PyTorch is not installed in this Python: install torch first")
    site_packages = Path(sysconfig.get_path("purelib"))
    if (site_packages / "detectron2").exists():
        raise InstallError(
            f"{site_packages / 'detectron2'} exists but can't be imported: "
            "remove it (pip uninstall detectron2) and try again"
        )
    pip("install", *BUILD_TOOLS)
    try:
        reach_repository()
        print(f"Detectron2: building {REPOSITORY}, this takes some minutes ...", flush=True)
        install(f"git+{REPOSITORY}@{COMMIT}", site_packages)
        return (
            f"Detectron2: built from {REPOSITORY} at {COMMIT[:7]}, with its compiled operators "
            "(the GPU's only where PyTorch found a GPU and a CUDA compiler)."
        )
    except InstallError as error:
        print(f"Detectron2: not built from its repository ({error}).", flush=True)
    install_archive(site_packages)
    return (
        f"Detectron2: took the Python code of PyPI's {ARCHIVE} instead, repaired for today's NumPy "
        "and Pillow.\nMissing, because compiled: deformable convolutions (except a forward pass on "
        "a CPU), rotated boxes,\nthe fast COCO evaluation (the official, slower one runs instead). "
        "Mask R-CNN needs none of them."
    )


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    try:
        print(install_detectron2())
    except (InstallError, OSError) as error:
        print(f"install_detectron2.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
