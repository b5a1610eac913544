"""Several processes with a GPU each: layers that synchronise, and training iterations."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evonorm import build_norm_act
from evonorm_runs import distributed

from . import training

LAYERS = ("EvoNormB0", "EvoNormS0", "BN-ReLU")
NORMS = ("BN", "GN", "EvoNormB0", "EvoNormS0")
LARGEST_ERROR = 1e-4  # of a sound layer, relative, in float32


def run(
    world: int, device: str, shape: tuple[int, ...], model: str, overrides: list[str], repeats: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What :func:`layer_error` finds of each layer, and a report of training iterations.

    Args:
        world: the number of processes: NCCL joins them on "cuda", gloo on "cpu".
        shape: of a rank's part of the layers' input.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        options = (world, port, folder, device, shape, model, overrides, repeats)
        torch.multiprocessing.spawn(_rank, options, nprocs=world)
        return tuple(json.loads((Path(folder) / "result.json").read_text()))


def _rank(
    rank: int, world: int, port: int, folder: str, device: str, shape: tuple[int, ...],
    model: str, overrides: list[str], repeats: int,
) -> None:  # fmt: skip
    from .bare import stand_in

    stand_in()
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    torch.set_num_threads(1)
    own = distributed.init(device)
    layers = []
    for name in LAYERS:
        error = layer_error(name, shape, own)
        worst = distributed.gather(torch.tensor([error])).max().item()
        layers.append({"layer": name, "error": worst, "sound": worst < LARGEST_ERROR})
    steps = training.build_steps(model, device, overrides, NORMS)
    report = training.report(*training.measure(steps, repeats, device))
    if distributed.is_main():
        (Path(folder) / "result.json").write_text(json.dumps([layers, report]))
    distributed.shut_down()


def layer_error(name: str, shape: tuple[int, ...], device: torch.device) -> float:
    """How far a layer on parts of a batch is from the same on all of it, in float64 on the CPU.

    Returns:
        the largest of the relative errors, by the Euclidean norm, of output and gradients.
    """
    world, rank = distributed.world_size(), distributed.rank()
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, world, *shape, generator=generator, dtype=torch.float64)
    x += torch.arange(world)[:, None, None, None, None]  # so that a rank's mean is its own
    layer = build_norm_act(name, shape[1], sync=True, dtype=torch.float64)
    for p in layer.parameters():
        nn.init.uniform_(p, 0.5, 1.5, generator=generator)
    whole = build_norm_act(name, shape[1], dtype=torch.float64)
    whole.load_state_dict(layer.state_dict())
    expected = _outputs(whole, whole, x.flatten(0, 1), dy.flatten(0, 1))
    expected[:2] = [t.unflatten(0, (world, -1))[rank] for t in expected[:2]]
    layer = layer.to(device, torch.float32)
    found = _outputs(layer, distributed.wrap(layer), *(t[rank].to(device).float() for t in (x, dy)))
    found[2:] = [world * t for t in found[2:]]  # of which the wrapper takes the mean
    pairs = zip(found, expected)
    return max(((a.cpu().double() - b).norm() / b.norm()).item() for a, b in pairs)


def _outputs(layer: nn.Module, wrapped: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Output and gradients of the input and of the parameters."""
    x = x.requires_grad_()
    y = wrapped(x)
    y.backward(dy)
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]
