"""sync=True: two processes with a part of the batch each equal one process with all of it.

Run as a script, this file is one of the processes: `test_sync.py RANK FOLDER`.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from evonorm import build_norm_act

NAMES = ["EvoNormB0", "EvoNormB1", "EvoNormB2", "RS+rej", "BN-ReLU", "BN-Swish"]
NAMES += [
    "x / max(std_b(x), rms_b(tanh(x)) + abs(v0))",
    "tanh(x) * std_b(x - mean_b(abs(x))) + mean_c(x)",
]
SPLITS = [2, 3, 4]  # how many of the four samples rank 0 has
CASES = [(name, split) for name in NAMES for split in SPLITS]


def step(name, part, sync):
    """One forward and backward pass of samples `part` of the batch."""
    generator = torch.Generator().manual_seed(0)
    layer = build_norm_act(name, 3, sync=sync, dtype=torch.float64)
    for p in layer.parameters():
        torch.nn.init.normal_(p, generator=generator)
    # Ranks differ in mean and scale, so that statistics of one rank are far from those of both.
    x, dy = torch.randn(2, 4, 3, 5, 2, generator=generator, dtype=torch.float64)
    x = (x * torch.tensor([1.0, 2.0, 3.0, 9.0])[:, None, None, None] + dy.cumsum(0))[part]
    x.requires_grad_()
    y = layer(x)
    y.backward(dy[part])
    return {
        "y": y.detach(),
        "x.grad": x.grad,
        **{f"{k}.grad": p.grad for k, p in layer.named_parameters()},
        **dict(layer.named_buffers()),
    }


def gradient_penalty(name, part, sync):
    """A loss with a gradient in it, as a GAN's discriminator has."""
    layer = build_norm_act(name, 3, sync=sync, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 5, 2, generator=generator, dtype=torch.float64)[part].requires_grad_()
    (dx,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
    dx.square().sum().backward()
    return {"x.grad": x.grad, "weight.grad": layer.weight.grad}


def nothing_anywhere():
    layer = build_norm_act("EvoNormB0", 3, sync=True)
    layer(torch.empty(0, 3, 5, 2, requires_grad=True)).sum().backward()
    return {"running_var": layer.running_var, "weight.grad": layer.weight.grad}


def part_of(rank, split):
    return slice(split) if rank == 0 else slice(split, None)


def worker(rank, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, timedelta(minutes=2), world_size=2, rank=rank)
    results = {case: step(case[0], part_of(rank, case[1]), sync=True) for case in CASES}
    results["penalty"] = gradient_penalty("EvoNormB0", part_of(rank, 3), sync=True)
    results["nothing"] = nothing_anywhere()
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of both processes."""
    folder = tmp_path_factory.mktemp("sync")
    command = [sys.executable, str(Path(__file__).resolve())]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=180)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def assert_equals_whole(parts, whole):
    for key, expected in whole.items():
        a, b = (part[key] for part in parts)
        if key in ("y", "x.grad"):
            torch.testing.assert_close(torch.cat([a, b]), expected)
        elif key.endswith(".grad"):
            torch.testing.assert_close(a + b, expected)
        else:
            assert torch.equal(a, b)
            torch.testing.assert_close(a, expected)


@pytest.mark.parametrize("name, split", CASES)
def test_two_ranks_equal_one_process(ranks, name, split):
    assert_equals_whole([r[name, split] for r in ranks], step(name, slice(None), sync=False))


def test_double_backward(ranks):
    whole = gradient_penalty("EvoNormB0", slice(None), sync=False)
    assert_equals_whole([r["penalty"] for r in ranks], whole)


def test_no_samples_on_any_rank(ranks):
    for rank in ranks:
        assert torch.equal(rank["nothing"]["running_var"], torch.ones(3))
        assert torch.equal(rank["nothing"]["weight.grad"], torch.zeros(3))


def test_without_a_process_group_it_is_the_local_batch():
    for key, expected in step("EvoNormB0", slice(3), sync=False).items():
        assert torch.equal(step("EvoNormB0", slice(3), sync=True)[key], expected)


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
