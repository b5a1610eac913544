"""Checkpoints: atomic, safe, and complete as far as random numbers go."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from evonorm_d2.checkpoint import Checkpointer, RandomState, kept_random_state, read_weights
from evonorm_runs.errors import UserError
from evonorm_runs.folder import claimed


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def model():
    return nn.Linear(300, 200)


def checkpointer(model, folder, **objects):
    return Checkpointer(model, str(folder), **objects)


def die_while_writing(target, model, folder):
    """Save a checkpoint in another process that dies in the middle of writing `target`."""

    def run():
        write_all = torch.save

        def write_half(state, file):
            if target in file.name:
                file.write(b"half")
                file.flush()
                os._exit(9)
            write_all(state, file)

        torch.save = write_half
        replace = os.replace
        os.replace = lambda a, b: os._exit(9) if target in str(b) else replace(a, b)
        checkpointer(model, folder).save("model_2")

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == 9


class TestAtomic:
    @pytest.mark.parametrize("target", ["model_2.pth", "last_checkpoint"])
    def test_killed_while_writing(self, model, tmp_path, target):
        checkpointer(model, tmp_path).save("model_1")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            model.weight.add_(1)
        die_while_writing(target, model, tmp_path)
        assert (tmp_path / "last_checkpoint").read_text() == "model_1.pth"
        assert len(list(tmp_path.glob("*.partial"))) == 1
        fresh = checkpointer(model, tmp_path)
        assert not any(name.endswith(".partial") for name in fresh.get_all_checkpoint_files())
        fresh.resume_or_load("", resume=True)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        with claimed(str(tmp_path), ["*.pth"], resume=True):  # as a training begins
            assert not list(tmp_path.glob("*.partial"))
        fresh.save("model_3")
        assert (tmp_path / "last_checkpoint").read_text() == "model_3.pth"

    def test_killed_while_writing_over_a_checkpoint(self, model, tmp_path):
        checkpointer(model, tmp_path).save("model_2")
        whole = (tmp_path / "model_2.pth").read_bytes()
        die_while_writing("model_2.pth", model, tmp_path)
        assert (tmp_path / "model_2.pth").read_bytes() == whole

    def test_nothing_is_written_without_a_folder_or_by_other_processes(self, model, tmp_path):
        checkpointer(model, "").save("model_1")
        Checkpointer(model, str(tmp_path), save_to_disk=False).save("model_1")
        assert not list(tmp_path.iterdir())


class TestSafe:
    @pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.pyth"])
    @pytest.mark.parametrize("write", [torch.save, pickle.dump])
    def test_runs_no_code(self, model, tmp_path, name, write):
        with open(tmp_path / name, "wb") as file:
            write({"model": {}, "__author__": Bomb(tmp_path / "exploded")}, file)
        with pytest.raises(UserError) as error:
            checkpointer(model, tmp_path).load(str(tmp_path / name))
        assert str(error.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "exploded").exists()

    def test_names_what_it_refuses(self, tmp_path):
        for name, write in (("a.pth", torch.save), ("a.pkl", pickle.dump)):
            with open(tmp_path / name, "wb") as file:
                write({"model": Bomb(tmp_path)}, file)
            with pytest.raises(UserError, match="could run code, as it holds posix.mkdir"):
                read_weights(str(tmp_path / name))

    @pytest.mark.parametrize("size", [0, 100, 0.5, 0.999])
    @pytest.mark.parametrize("suffix", [".pth", ".pkl"])
    def test_truncated(self, model, tmp_path, size, suffix):
        path = tmp_path / f"a{suffix}"
        if suffix == ".pth":
            torch.save({"model": model.state_dict()}, path)
        else:
            path.write_bytes(pickle.dumps({"model": {"a": np.ones(1000)}, "__author__": ""}))
        whole = path.read_bytes()
        path.write_bytes(whole[: int(size * len(whole)) if isinstance(size, float) else size])
        with pytest.raises(UserError, match=f"^{path}: damaged, or not a checkpoint$"):
            checkpointer(model, tmp_path).load(str(path))

    def test_other_files(self, model, tmp_path):
        (tmp_path / "text.pth").write_text("MODEL: {}\n")
        torch.save([1, 2], tmp_path / "list.pth")
        for name in ("text.pth", "list.pth"):
            with pytest.raises(UserError, match=f"{tmp_path / name}: .*not a checkpoint"):
                checkpointer(model, tmp_path).load(str(tmp_path / name))
        with pytest.raises(FileNotFoundError, match="none.pth: there is no such checkpoint"):
            checkpointer(model, tmp_path).load(str(tmp_path / "none.pth"))

    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_model_zoo(self, model, tmp_path, protocol):
        """Detectron2's own layout and Caffe2's, both pickles of NumPy arrays."""
        arrays = {
            key: np.random.rand(*x.shape).astype("f4") for key, x in model.state_dict().items()
        }
        ours = {"model": OrderedDict(arrays), "__author__": "x", "scale": np.float32(0.5)}
        caffe2 = {"blobs": {"fc_w": arrays["weight"], "fc_w_momentum": arrays["weight"]}}
        for name, data in (("ours.pkl", ours), ("caffe2.pkl", caffe2)):
            (tmp_path / name).write_bytes(pickle.dumps(data, protocol))
        checkpointer(model, tmp_path).load(str(tmp_path / "ours.pkl"))
        np.testing.assert_array_equal(model.weight.detach(), arrays["weight"])
        np.testing.assert_array_equal(model.bias.detach(), arrays["bias"])
        loaded = checkpointer(model, tmp_path)._load_file(str(tmp_path / "caffe2.pkl"))
        assert loaded["model"].keys() == {"fc_w"} and loaded["matching_heuristics"]

    def test_bare_state_dict(self, model, tmp_path):
        torch.save(model.state_dict(), tmp_path / "bare.pth")
        other = nn.Linear(300, 200)
        checkpointer(other, tmp_path).load(str(tmp_path / "bare.pth"))
        assert torch.equal(other.weight, model.weight)


def draw():
    return random.random(), np.random.randn(), np.random.rand(3).tolist(), torch.rand(3).tolist()


class TestRandomState:
    def test_saved_and_restored(self, model, tmp_path):
        np.random.randn()  # half of a pair of normal numbers is kept for later
        checkpointer(model, tmp_path, random=RandomState()).save("model_1")
        expected = draw()
        draw()
        checkpointer(model, tmp_path, random=RandomState()).resume_or_load("", resume=True)
        assert draw() == expected

    def test_kept(self):
        with kept_random_state():
            first = draw()
        assert draw() == first
