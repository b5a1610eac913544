"""SIGTERM asks a training to stop: it ends its step, writes a checkpoint and leaves with a line."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from . import distributed
from .errors import UserError

_signalled = threading.Event()


class Stopped(UserError):
    """A training was asked to stop and can go on from its checkpoint."""


@contextlib.contextmanager
def on_sigterm() -> Iterator[None]:
    """Let :func:`asked` tell of a SIGTERM, in a `with` block or in a function that it decorates.

    The first SIGTERM has no other effect. A second one has the effect that it had before.
    """
    if threading.current_thread() is not threading.main_thread():  # the only one to handle signals
        yield
        return

    def handle(*_: Any) -> None:
        if _signalled.is_set():
            signal.signal(signal.SIGTERM, before)
            os.kill(os.getpid(), signal.SIGTERM)
        _signalled.set()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _signalled.clear()


def asked() -> bool:
    """Whether one of the run's processes got SIGTERM. All of them must call it."""
    return distributed.any_rank(_signalled.is_set())
