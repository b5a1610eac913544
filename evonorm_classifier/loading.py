"""How fast images are decoded, and whether the device waits for them."""

from __future__ import annotations

import os
import time
from typing import Any

from torch import Tensor

TRIED = 32  # images at most, and seconds at most, to measure the rate with
TRIED_SECONDS = 0.5
MUCH = 0.2  # the share of the time from which on waiting is worth a hint


def decoding_rate(images: Any) -> float:
    """Images that one process decodes, crops and augments a second: images[0], images[1], ..."""
    began, count = time.perf_counter(), 0
    while count < min(TRIED, len(images)) and time.perf_counter() - began < TRIED_SECONDS:
        images[count]
        count += 1
    return count / (time.perf_counter() - began)


class Loading:
    """The time that a training waits for its batches, and one hint if that is much of it.

    On a GPU the host runs ahead of the device unless the data is slow, so the host's waiting is the
    device's.
    """

    def __init__(self, workers: int) -> None:
        self.workers, self.waited, self.started, self.said = workers, 0.0, False, False

    def take(self, batches: Any) -> tuple[Tensor, Tensor]:
        """The next batch."""
        began = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - began
        return batch

    def hint(self, seconds: float) -> str:
        """A line if much of the last `seconds` was waiting, once; else "".

        The first interval is left out, as the processes that decode start in it.
        """
        share, self.waited = self.waited / max(seconds, 1e-9), 0.0
        first, self.started = not self.started, True
        if first or self.said or share < MUCH:
            return ""
        self.said = True
        return (
            f"{share:.0%} of the time is waiting for images: raise DATA.NUM_WORKERS (it is "
            f"{self.workers}, and this machine has {os.cpu_count()} cores), or keep smaller images"
        )
