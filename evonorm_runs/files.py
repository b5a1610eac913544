"""Write files whole or not at all, and load checkpoints without running code from them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Callable

import torch

from .errors import UserError, disk_errors, user_errors

PARTIAL = ".partial"  # ends the name of a file that is being written


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` once it is whole and on the disk.

    Raises:
        UserError: the disk is full or can't be written to; `path` is as it was.
    """
    # Two processes may write the same file at once: the last one stays.
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with disk_errors(path, "; all other files are kept"), open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else the renaming itself may not survive a power cut
    finally:
        os.close(folder)


def load_tensors(file: IO[bytes]) -> Any:
    """What torch.save wrote: tensors, on the CPU, and plain containers."""
    return torch.load(file, map_location="cpu", weights_only=True)


def read_checkpoint(
    path: str | os.PathLike, load: Callable[[IO[bytes]], Any] = load_tensors
) -> dict[str, Any]:
    """The dictionary in a checkpoint.

    Args:
        load: reads an open file. Its error for what could run code names it after "GLOBAL".

    Raises:
        OSError: the file can't be opened.
        UserError: damaged, not a checkpoint, or holding more than tensors and plain containers.
    """
    with open(path, "rb") as file:
        _check_sums(file, path)
        try:
            data = load(file)
        except Exception as error:  # a damaged file may raise anything
            forbidden = re.search(r"GLOBAL (\S+)", str(error))
            if forbidden:
                raise UserError(
                    f"{path}: loading it could run code, as it holds {forbidden[1]}; "
                    "a checkpoint may hold arrays and plain containers only"
                ) from error
            raise UserError(f"{path}: damaged, or not a checkpoint") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a checkpoint, which would be a dictionary")
    return data


def _check_sums(file: IO[bytes], path: str | os.PathLike) -> None:
    """Compare the parts of a zip that torch.save wrote with their checksums. PyTorch does not."""
    with user_errors(Exception, prefix=f"{path}: damaged: "):  # a damaged zip may raise anything
        if zipfile.is_zipfile(file):
            broken = zipfile.ZipFile(file).testzip()
            if broken:
                raise UserError(f"{path}: damaged: its part {broken} does not fit its checksum")
    file.seek(0)


def sha256(path: Path) -> str:
    """The hex sha256 of a file.

    Raises:
        UserError: it can't be read.
    """
    digest = hashlib.sha256()
    with user_errors(OSError), open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
