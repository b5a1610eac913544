"""The processes that torchrun started, on any number of nodes; with one process all is local."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def init(device: str) -> torch.device:
    """Join the other processes if torchrun started this one.

    Args:
        device: "cuda" gives each process the GPU of its rank in its node; or another device.

    Returns:
        this process's device.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    if device == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device)


@contextlib.contextmanager
def process_flags(cudnn_benchmark: bool = True) -> Iterator[None]:
    """Set PyTorch's flags for a training, in a `with` block or in a function that it decorates.

    Denormals count as zero: they are frequent in a barely trained network, and slow a CPU down 5
    to 30 times.
    """
    before = torch.backends.cudnn.benchmark
    # PyTorch does not tell whether denormals count as zero, so compute with one.
    flushed = (torch.tensor([2.0**-1074], dtype=torch.float64) * 1.0).item() == 0
    torch.backends.cudnn.benchmark = cudnn_benchmark
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
        torch.set_flush_denormal(flushed)


def shut_down() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number. Before :func:`init` it is the RANK that torchrun has set."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes have joined."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def any_rank(flag: bool) -> bool:
    """Whether `flag` is set in one of the processes."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(float(flag), device=_device())
    dist.all_reduce(flags)
    return flags.item() > 0


def barrier() -> None:
    """Wait for the other processes."""
    if world_size() > 1:
        dist.barrier()


def gather(x: Tensor) -> Tensor:
    """Concatenate the x (n_i, ...) of all ranks, in their order: (sum of n_i, ...) on x's device.

    Every rank gets the result. Ranks may hold different numbers of rows, or none; all rows have the
    same shape.
    """
    if world_size() == 1:
        return x
    local = x.to(_device()).contiguous()
    count = torch.tensor([len(local)], device=local.device)
    counts = [torch.empty_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    sizes = [int(n) for n in counts]
    padded = local.new_zeros(max(sizes), *local.shape[1:])  # all_gather takes equal shapes only
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, sizes)]).to(x.device)


def average_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks."""
    if world_size() > 1:
        for x in tensors:
            dist.all_reduce(x)
            x /= world_size()


def wrap(network: nn.Module) -> nn.Module:
    """The network with its gradients averaged over the ranks; its buffers stay each rank's own."""
    if world_size() == 1:
        return network
    devices = [torch.cuda.current_device()] if dist.get_backend() == "nccl" else None
    with warnings.catch_warnings():  # newer versions of PyTorch rename broadcast_buffers
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)


def no_sync(wrapped: nn.Module, enabled: bool) -> contextlib.AbstractContextManager:
    """A context in which the gradients of a wrapped network stay on each rank, if enabled."""
    if enabled and isinstance(wrapped, DistributedDataParallel):
        return wrapped.no_sync()
    return contextlib.nullcontext()


def _device() -> torch.device:
    """Where the backend wants its tensors."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
