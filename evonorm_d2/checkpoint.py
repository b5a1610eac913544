"""Checkpoints that are whole or absent, run no code when loaded, and let a run resume exactly."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

from evonorm_runs.errors import user_errors
from evonorm_runs.files import atomic_write, read_checkpoint
from evonorm_runs.random_state import get_random_state, set_random_state


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer for local folders, atomic and safe.

    A file is written under another name, forced to the disk and renamed. The checkpoint comes
    first, then the tag `last_checkpoint`, so the tag names a whole checkpoint whenever the process
    is killed. Loading raises FileNotFoundError or UserError for a file that is absent, damaged or
    could run code.
    """

    def save(self, name: str, **extra: Any) -> None:
        if not (self.save_dir and self.save_to_disk):
            return
        objects = {"model": self.model, **self.checkpointables}
        state = {key: value.state_dict() for key, value in objects.items()}
        path = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_write(path) as file:
            torch.save({**state, **extra}, file)
        self.tag_last_checkpoint(path.name)

    def done(self) -> int:
        """How many iterations the last checkpoint has done; 0 if there is none, or it is damaged.

        Only a part of the file is read: the whole takes a second or two for each gigabyte.
        """
        if not self.has_checkpoint():
            return 0
        try:
            file = self.get_checkpoint_file()
            return torch.load(file, "cpu", mmap=True, weights_only=True)["iteration"] + 1
        except Exception:  # of a damaged file; loading it names what is wrong
            return 0

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise FileNotFoundError(f"{path}: there is no such checkpoint")
        with user_errors(URLError, prefix=f"MODEL.WEIGHTS {path}: "):
            return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        data = read_weights(filename)
        if filename.endswith(".pkl") and not {"model", "__author__"} <= data.keys():
            # Caffe2's weights, which have other names and include the momenta of SGD.
            blobs = data.get("blobs", data)
            weights = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        data = data if "model" in data else {"model": data}
        url = getattr(self, "_parsed_url_during_load", None)  # release 0.6 does not accept a query
        if url and "matching_heuristics=True" in url.query:
            data["matching_heuristics"] = True
        return data


def read_weights(path: str) -> dict[str, Any]:
    """What is in a .pth of PyTorch or a .pkl of Detectron2's model zoo, without running code.

    Raises:
        UserError: damaged, not a checkpoint, or holding more than arrays and plain containers.
    """
    if path.endswith(".pkl"):
        return read_checkpoint(path, lambda file: _ArrayUnpickler(file, encoding="latin1").load())
    return read_checkpoint(path)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers, and nothing that could run code."""

    ALLOWED = {
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),  # bytes, in old protocols
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        *(
            (f"numpy.{core}.multiarray", function)
            for core in ("core", "_core")
            for function in ("_reconstruct", "scalar")
        ),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


class RandomState:
    """The global generators of Python, NumPy and PyTorch, as an object to checkpoint.

    Only the first process writes a checkpoint. With several processes, each keeps its own state.
    """

    def state_dict(self) -> dict[str, Any]:
        return get_random_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if comm.get_world_size() == 1:
            set_random_state(state)


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """A context that leaves the global generators as they were, whatever is drawn in it."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)
