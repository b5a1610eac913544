"""Two processes with half of a batch each train as one process with all of it.

Run as a script, this file is one of the processes: `test_distributed.py FOLDER`, in torchrun's
environment.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evonorm_gan import run, trainer
from evonorm_gan.config import load_config
from evonorm_runs import distributed
from evonorm_runs.images.sets import MemorySet

CONFIG = Path(__file__).parents[2] / "configs" / "gan" / "digits.yaml"
CASES = {
    "EvoNormS0": ("MODEL.NORM", "EvoNormS0", "SOLVER.ORTHO_REG", "1e-4"),
    "accumulate": ("MODEL.NORM", "EvoNormS0", "SOLVER.ACCUMULATE", "2"),
    "synchronised": ("MODEL.NORM", "BN-ReLU", "MODEL.SYNC", "True"),
    "local": ("MODEL.NORM", "BN-ReLU"),
    "adaptive": ("SOLVER.D_STEPS", "2", "SOLVER.ADA", "0.01", "SOLVER.ADA_IMAGES", "64"),
}


def work(folder):
    """Train two steps of each case."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (22, 3, 32, 32), generator=generator, dtype=torch.uint8)
    trainer.open_dataset = lambda cfg: MemorySet(images, torch.arange(22) % 10, list("0123456789"))
    common = "MODEL.G_CH 8 MODEL.D_CH 8 MODEL.DIM_Z 8 SOLVER.BATCH_SIZE 8 SOLVER.MAX_ITER 2"
    common += " DATA.FLIP True SOLVER.LR_G 1e-4 SOLVER.LR_D 1e-4 SOLVER.EMA_START 0 DEVICE cpu"
    common += " SOLVER.LOG_PERIOD 1 TEST.EVAL_PERIOD -1 SOLVER.EPS 1e-3 TEST.BATCH_SIZE 4"
    for name, overrides in CASES.items():
        output = ("OUTPUT_DIR", str(folder / name), "TEST.STANDING_BATCHES", "2")
        trainer.train(load_config(str(CONFIG), [*common.split(), *overrides, *output]))


def gathered():
    """What :func:`distributed.gather` and the others give with two ranks."""
    rank = distributed.rank()
    rows = torch.arange(6.0).reshape(3, 2) + 10 * rank
    x = torch.tensor([1.0 + rank])
    distributed.average_([x])
    return {
        "uneven": distributed.gather(rows[: 2 * rank + 1]),
        "none": distributed.gather(rows[: 2 * rank]),
        "integers": distributed.gather(torch.tensor([rank])),
        "average": x,
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of one process and of two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(2):
        own = {**common, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(subprocess.Popen([sys.executable, __file__, str(two)], env=own))
    try:
        with pytest.MonkeyPatch.context() as patch:  # undoes what `work` replaces
            patch.setattr(trainer, "open_dataset", trainer.open_dataset)
            work(one)
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return one, two


def checkpoints(folders, case):
    names = (folder / case / "model_0000002.pth" for folder in folders)
    return [torch.load(name, weights_only=True) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["EvoNormS0", "accumulate", "synchronised"])
def test_two_processes_train_as_one(folders, case):
    one, two = checkpoints(folders, case)
    for network in ("generator", "discriminator", "ema"):
        for key, value in one[network].items():
            torch.testing.assert_close(two[network][key], value, rtol=1e-3, atol=2e-5, msg=key)
    for name, (total, count) in one["sums"].items():
        assert two["sums"][name] == [pytest.approx(total, rel=1e-4), count]


@pytest.mark.slow
def test_statistics_of_one_process_each_are_averaged_in_a_checkpoint(folders):
    one, two = checkpoints(folders, "local")
    key = "last_norm.running_mean"
    assert (one["generator"][key] - two["generator"][key]).abs().max() > 1e-6
    averaged = torch.load(folders[1] / "averaged.pth", weights_only=True)
    for network in ("generator", "ema"):
        torch.testing.assert_close(two[network][key], averaged)


@pytest.mark.slow
def test_all_processes_have_the_same_probability_of_augmentations(folders):
    first, second = (torch.load(folders[1] / f"ada{i}.pth").T for i in range(2))
    assert not torch.equal(first[0], second[0])  # each has its own scores
    assert torch.equal(first[1:], second[1:])
    assert first[1, 0] == 0 and first[1, -1] == 0.5 and first[2].count_nonzero() > 0
    assert checkpoints(folders, "adaptive")[1]["ada"] == {"p": 0.5, "signs": []}


@pytest.mark.slow
def test_gather(folders):
    first, second = (torch.load(folders[1] / f"gathered{rank}.pth") for rank in range(2))
    rows = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(first["uneven"], torch.cat([rows[:1], rows + 10]))
    assert torch.equal(first["none"], rows[:2] + 10)
    assert torch.equal(first["integers"], torch.tensor([0, 1]))
    assert torch.equal(first["average"], torch.tensor([1.5]))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_alone_all_is_local():
    x = torch.randn(3, 2)
    assert distributed.gather(x) is x and distributed.world_size() == 1 and distributed.is_main()
    network = torch.nn.Linear(2, 2)
    assert distributed.wrap(network) is network


def record_statistics(folder):
    """Keep what each rank's running mean is before it is averaged, in the case `local`."""
    average = run.average_statistics

    def record(network):
        own = network.last_norm.state_dict().get("running_mean")
        if own is not None:
            both = distributed.gather(own[None])
            if distributed.is_main() and (both[0] - both[1]).abs().max() > 1e-6:
                torch.save(both.mean(0), folder / "averaged.pth")
        average(network)

    run.average_statistics = record


def record_probability(kept):
    """Add, at each update in the case `adaptive`, this rank's mean sign, p, and the signs kept."""
    update = run.GanRun.update

    def record(self, player, step, losses):
        if self.ada.target:
            own = losses[3].item() if player is self.D else 0.0
            kept.append([own, self.ada.p, sum(self.ada.signs)])
        return update(self, player, step, losses)

    run.GanRun.update = record


if __name__ == "__main__":
    folder, kept = Path(sys.argv[1]), []
    record_statistics(folder)
    record_probability(kept)
    work(folder)
    torch.save(torch.tensor(kept), folder / f"ada{distributed.rank()}.pth")
    torch.save(gathered(), folder / f"gathered{distributed.rank()}.pth")
    distributed.shut_down()
