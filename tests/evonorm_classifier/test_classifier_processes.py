"""A classifier's training in two processes: killed or stopped it goes on; recomputing is exact."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest
import torch
import torch.multiprocessing as mp
import torch.utils.tensorboard  # noqa: F401 - here once, not in each process
import torchvision  # noqa: F401 - the same

from evonorm_classifier import trainer

# Two epochs of five steps; running statistics of each process, averaged weights.
SETTINGS = "MODEL.NORM EvoNormB0 SOLVER.WORKERS 2 SOLVER.IMS_PER_WORKER 2 SOLVER.EMA 0.9".split()
SETTINGS += "SOLVER.EPOCHS 2 MODEL.WIDTH 0.25".split()


def lines(folder):
    found = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def checkpoint(folder):
    state = torch.load(folder / "checkpoint.pth", weights_only=True)
    state.pop("config")  # it names its folder
    return state


@pytest.fixture
def train(tiny_cfg, noise, tmp_path, monkeypatch):
    """train(name, what, at): in two processes; the second one gets the signal `what` in step `at`.

    Returns the run's folder. It goes on if it has a checkpoint.
    """

    def process(rank, cfg, port, what, at):
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": rank}
        os.environ.update({key: str(value) for key, value in where.items()})
        step = trainer.train_step

        def watched(run, number, batches):
            if rank == 1 and number == at:
                os.kill(os.getpid(), what)
            return step(run, number, batches)

        trainer.train_step = watched
        torch.set_num_threads(1)
        trainer.train(cfg, resume=True)

    def run(name, what=signal.SIGKILL, at=None, more=()):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        cfg = tiny_cfg(*SETTINGS, *more, "OUTPUT_DIR", tmp_path / name)
        # As torchrun does, it ends both processes if one of them fails.
        context = mp.start_processes(
            process, (cfg, port, what, at), nprocs=2, join=False, start_method="fork"
        )
        if at is None:
            while not context.join():
                pass
        else:
            with pytest.raises((mp.ProcessExitedException, mp.ProcessRaisedException)):
                while not context.join():
                    pass
        return tmp_path / name

    return run


def test_a_process_that_is_killed_or_stopped_ends_both_and_the_run_goes_on(train, equal):
    whole = train("whole")
    killed = train("killed", signal.SIGKILL, 8)
    assert checkpoint(killed)["step"] == 5  # an epoch's end
    train("killed")
    assert equal(checkpoint(whole), checkpoint(killed))
    assert lines(whole) == lines(killed)
    found = [json.loads((run / "confusion.json").read_text()) for run in (whole, killed)]
    assert found[0] == found[1]
    assert sum(images for *_, images in found[0]["counts"]) == 18  # of both processes

    stopped = train("stopped", signal.SIGTERM, 8)
    assert checkpoint(stopped)["step"] == 8  # after the step, in both
    train("stopped")
    a, b = checkpoint(whole), checkpoint(stopped)
    # The processes' statistics are averaged once more, which rounds once more.
    for part in ("model", "averaged"):
        torch.testing.assert_close(a[part], b[part], rtol=1e-5, atol=1e-6)
    assert lines(whole) == [pytest.approx(line, rel=1e-4) for line in lines(stopped)]


def test_outputs_that_are_computed_again_change_no_bit(train, equal):
    usual = train("usual", more=("SOLVER.AMP", True))
    again = train("again", more=("SOLVER.AMP", True, "MODEL.RECOMPUTE", True))
    assert equal(checkpoint(usual), checkpoint(again))
