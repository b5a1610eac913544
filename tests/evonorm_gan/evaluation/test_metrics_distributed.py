"""Two processes give the metrics of one.

Run as a script, this file is one of the processes: `test_metrics_distributed.py FOLDER`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evonorm_gan.config import load_config
from evonorm_gan.evaluation import embedded_extractor
from evonorm_gan.evaluation.extractor import share, shares
from evonorm_gan.evaluation.metrics import Evaluator
from evonorm_gan.models import Generator
from evonorm_runs import distributed
from evonorm_runs.images.sets import MemorySet

CONFIG = Path(__file__).parents[3] / "configs" / "gan" / "digits.yaml"


def noise(num, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num, 3, 32, 32), generator=generator, dtype=torch.uint8)


def evaluate(folder):
    """The metrics of a generator and of images, and what goes wrong with too few of these."""
    torch.set_num_threads(1)
    real = MemorySet(noise(37, 0), torch.arange(37) % 10, [str(i) for i in range(10)])
    embedded_extractor.STEPS = {"digits": 2}
    embedded_extractor.open_dataset = lambda cfg, split: real
    keys = {"TEST.NUM_SAMPLES": 21, "TEST.BATCH_SIZE": 6, "TEST.STANDING_BATCHES": 2}
    keys |= {"TEST.CACHE_DIR": folder / "cache", "DEVICE": "cpu"}
    cfg = load_config(str(CONFIG), [str(x) for pair in keys.items() for x in pair])
    device = distributed.init(cfg.DEVICE)
    evaluator = Evaluator(cfg, real, device)
    torch.manual_seed(0)
    G = Generator(32, 4, 10, norm="BN-ReLU", dim_z=8)
    found = [evaluator.evaluate(G), evaluator.evaluate_images(noise(15, 1).split(4))]
    try:
        evaluator.evaluate_images([noise(9, 1)])
    except ValueError as error:
        found.append(str(error))
    distributed.shut_down()
    return found


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        root = str(CONFIG.parents[2])
        environment = {**os.environ, "PYTHONPATH": root, **{k: str(v) for k, v in place.items()}}
        command = [sys.executable, __file__, str(tmp_path)]
        processes.append(subprocess.Popen(command, env=environment, cwd=root))
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second and "9 are too few" in first[2]

    for name in ("STEPS", "open_dataset"):  # which `evaluate` replaces
        monkeypatch.setattr(embedded_extractor, name, getattr(embedded_extractor, name))
    alone = evaluate(tmp_path / "alone")
    for one, two in zip(alone[:2], first[:2]):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-5)
    assert alone[2] == first[2]


@pytest.mark.parametrize("world_size, num", [(1, 10), (2, 21), (3, 7), (8, 3), (4, 24)])
def test_shares_are_even_and_begin_with_all_in_order(monkeypatch, world_size, num):
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(list(shares(num, 2)))
        assert torch.equal(share(0, 1), torch.tensor([0]))
    indices = []
    for batch in zip(*parts):
        sizes = {size for _, size in batch}
        assert len(sizes) == 1 and len({len(index) for index, _ in batch}) == 1
        assert all(0 < len(index) <= 2 for index, _ in batch)
        indices += torch.cat([index for index, _ in batch])[: sizes.pop()].tolist()
    assert indices == list(range(num))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    results = evaluate(folder)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(results))
