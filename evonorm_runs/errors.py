"""Errors in the input as one line, also if they are raised in another process."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES}


class UserError(ValueError):
    """Bad input. Its text is one line: what is wrong, where, and what would be right."""


def one_line(error: BaseException) -> str:
    """The text of an exception on one line; its type if it has no text."""
    # str() of a KeyError is the repr of its text.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split()) or type(error).__name__


def printable(text: str) -> str:
    """The text without what a terminal would obey: control characters become such as \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def user_errors(*kinds: type[BaseException], prefix: str = "") -> Iterator[None]:
    """Raise exceptions of these kinds as a UserError: `prefix` and their text on one line."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        raise UserError(prefix + one_line(error)) from error


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike, kept: str = "") -> Iterator[None]:
    """Turn the error of a full, read-only or broken disk into a UserError.

    Args:
        kept: the end of its line, which says what is not lost.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # PyTorch's writer hides the disk's error behind one of its own.
        causes = [error, error.__context__]
        found = [e for e in causes if isinstance(e, OSError) and e.errno in _DISK]
        if not found:
            raise
        where = found[0].filename or os.fspath(path)
        raise UserError(f"{where} can't be written: {found[0].strerror}{kept}") from error


def user_error_line(error: BaseException) -> str | None:
    """The line to show for a UserError; None for any other exception, a fault of the program.

    A worker of a data loader, or a process of a distributed run, hands its UserError over as the
    last line of a traceback.
    """
    last = str(error).strip().rpartition("\n")[2]
    found = re.match(r"(?:[\w.]+\.)?(?:UserError|Stopped): (.*)", last)
    if found:
        return found[1]
    return last if isinstance(error, UserError) else None
