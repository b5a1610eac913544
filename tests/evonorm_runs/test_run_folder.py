"""A run's folder, its metrics, and the flags of a training process."""

from __future__ import annotations

import pytest
import torch

from evonorm_runs.distributed import process_flags
from evonorm_runs.errors import UserError
from evonorm_runs.folder import prepare, read_metrics
from evonorm_runs.pool import over_all
from evonorm_runs.random_state import mix


def test_damaged_lines_are_counted_and_left_out(tmp_path):
    whole = b'{"step": 1, "loss": 2.5}\n\n{"step": 2, "loss": NaN}\n'
    damaged = b'[1, 2]\n"text"\n3\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"step": 3, "lo'
    (tmp_path / "metrics.json").write_bytes(whole + damaged)
    lines, count = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2] and count == 6
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "absent")


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    folder = tmp_path / "a" / "b"
    assert prepare(folder, ["*.pth"], resume=False) is False and folder.is_dir()
    assert prepare(folder, ["*.pth"], resume=True) is False
    for name in ("config.yaml", "metrics.json", "model_1.pth"):
        (folder / name).touch()
        with pytest.raises(UserError, match=f"{folder} holds a run .*: continue it with --resume"):
            prepare(folder, ["*.pth"], resume=False)
    assert prepare(folder, ["*.pth"], resume=True) is True
    with pytest.raises(UserError, match="^OUTPUT_DIR: "):
        prepare(folder / "config.yaml" / "c", ["*.pth"], resume=False)


def flags():
    denormal = torch.tensor([2.0**-1074], dtype=torch.float64) * 1.0
    return denormal.item() == 0, torch.backends.cudnn.benchmark


@pytest.mark.parametrize("flushed", [False, True])
def test_the_flags_of_a_training_end_with_it(flushed):
    torch.set_flush_denormal(flushed)
    before = flags()

    @process_flags()
    def train():
        assert flags() == (True, True)
        raise KeyError

    try:
        for _ in range(2):
            with pytest.raises(KeyError):
                train()
            assert flags() == before == (flushed, False)
    finally:
        torch.set_flush_denormal(False)


def test_nearby_parts_give_unrelated_seeds():
    seeds = {mix(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900 and 0 <= min(seeds) and 2**60 < max(seeds) < 2**64


def test_a_pool_calls_a_function_with_each_input():
    found = dict(over_all(lambda x, environment: (x * x, environment), range(5), at_once=2))
    assert {x: result for x, (result, _) in found.items()} == {x: x * x for x in range(5)}
    assert all(set(environment) == {"OMP_NUM_THREADS"} for _, environment in found.values())
