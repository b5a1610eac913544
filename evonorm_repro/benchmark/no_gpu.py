"""Triton without a GPU: kernels are compiled for a GPU that is not there, and launches listed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, NamedTuple, Optional

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver


class Launch(NamedTuple):
    """What a GPU would have been given to run."""

    name: str
    cubin: bytes
    shared: int  # bytes a program
    warps: int
    programs: int
    arguments: dict[str, Any]  # of the kernel, by name; without constants before Triton 3.3


class NoGPU:
    """In place of Triton's driver. The number of the device is its compute capability."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.launches: Optional[list[Launch]] = None  # a list to have them listed
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 160 * 1024}

    def load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[Any, ...]:
        handle = (name, cubin, shared)
        most_threads = (1024,) if version() >= (3, 4) else ()
        return (handle, handle, 0, 0, *most_threads)

    def unload_module(self, module: Any) -> None:
        pass

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        names = source.fn.arg_names
        if version() < (3, 3):
            names = [name for i, name in enumerate(names) if i not in source.fn.constexprs]

        def launch(x: int, y: int, z: int, _stream: int, handle: Any, *rest: Any) -> None:
            listed = driver.active.launches  # a kernel may be compiled in an earlier context
            if listed is not None:
                named = dict(zip(names, rest[-len(names) :]))
                listed.append(Launch(*handle, metadata.num_warps, x * y * z, named))

        return launch


def version() -> tuple[int, ...]:
    return tuple(int(part) for part in triton.__version__.split(".")[:2])


@contextmanager
def no_gpu(capability: int) -> Iterator[NoGPU]:
    """A context in which Triton compiles for a GPU of this compute capability and runs nothing."""
    before, stub = dict(vars(driver)), NoGPU(capability)  # the attributes differ among versions
    driver.set_active(stub)
    try:
        yield stub
    finally:
        vars(driver).update(before)
