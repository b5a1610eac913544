"""The files of a data set, and what tells them from others: quickly, or by content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from ..errors import user_errors
from ..files import sha256

AT_ONCE = 10_000  # files whose reading is planned at a time


def files_below(root: Path) -> list[Path]:
    """All files in a folder and the folders in it, links followed, by name; `root` if it is a file.

    Raises:
        OSError: a link leads to a folder that it lies in, which would be found again and again.
    """
    if not root.is_dir():
        return [root]
    found = []
    for folder, names, files in os.walk(root, followlinks=True):
        for name in names:
            link = os.path.join(folder, name)
            target = os.path.realpath(link) if os.path.islink(link) else None
            if target and (os.path.realpath(folder) + os.sep).startswith(target + os.sep):
                raise OSError(f"{link}: a link to a folder that it lies in; remove it")
        found += [Path(folder, name) for name in files]
    return sorted(found)


def stat_files(root: Path) -> Iterator[tuple]:
    """Name, size, times and inode of a file, or of all files in a folder, in order.

    The time of the last change (ctime) can't be set: a file whose contents were replaced is
    noticed even if its time of modification was restored.
    """
    with user_errors(OSError):
        for file in files_below(root):
            s = file.stat() if file.exists() else file.lstat()  # a link to nothing
            yield os.path.relpath(file, root), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino


def read_files(root: Path) -> Iterator[tuple]:
    """Name and sha256 of a file, or of all files in a folder, in order."""
    with user_errors(OSError), ThreadPoolExecutor(8) as pool:
        files = files_below(root)
        hidden = None if len(files) > AT_ONCE else True
        title = f"reading {root}, to know it again"
        with tqdm(total=len(files), desc=title, disable=hidden) as bar:
            for start in range(0, len(files), AT_ONCE):
                some = files[start : start + AT_ONCE]
                for file, digest in zip(some, pool.map(_sha256, some)):
                    yield os.path.relpath(file, root), digest
                bar.update(len(some))


def _sha256(path: Path) -> str:
    return sha256(path) if path.is_file() else "no file"
