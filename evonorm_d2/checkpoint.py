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
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import atomic_write, read_checkpoint
from evonorm_runs.random_state import get_random_state, set_random_state

from .average import KEY, averaged_weights
from .backbone_file import check_backbone, with_writers


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer for local folders, atomic and safe.

    Args:
        cfg: the config that a backbone's file is compared with (see backbone_file.py); None for no
            comparison.
        model, save_dir, others: as Detectron2's.

    A file is written under another name, forced to the disk and renamed. The checkpoint comes
    first, then the tag `last_checkpoint`, so the tag names a whole checkpoint whenever the process
    is killed. Loading raises FileNotFoundError or UserError for a file that is absent, damaged or
    could run code, that does not fit the config, or of which nothing fits the model.

    A checkpoint that holds an average of the weights (SOLVER.EMA_DECAY) gives this average, unless
    a training goes on from it.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, cfg: CfgNode | None = None, **others: Any
    ) -> None:
        super().__init__(model, save_dir, **others)
        self.cfg = cfg

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

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise FileNotFoundError(f"{path}: there is no such checkpoint")
        self.source = path
        self.goes_on = checkpointables is None and KEY in self.checkpointables
        with user_errors(URLError, prefix=f"MODEL.WEIGHTS {path}: "):
            return super().load(path, checkpointables)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        path = self.source
        if {"epoch", "config", "data", "optimizer"} <= checkpoint.keys():
            raise UserError(
                f"{path}: a checkpoint of train_classifier.py; tools/export_backbone.py makes a "
                "file for MODEL.WEIGHTS of it"
            )
        if KEY in checkpoint and not self.goes_on:
            checkpoint["model"] = averaged_weights(checkpoint.pop(KEY))
        backbone = checkpoint.get("backbone")
        if backbone and self.cfg is not None:
            check_backbone(backbone["settings"], self.cfg, path)
        own = self.model.state_dict()
        if backbone:
            _check_shapes(checkpoint["model"], own, path)
        if checkpoint.pop("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            caffe2 = checkpoint.get("__author__") == "Caffe2"
            checkpoint["model"] = align_and_update_state_dicts(own, checkpoint["model"], caffe2)
        _check_fit(checkpoint["model"], own, path)
        if backbone:
            norm_acts = backbone["norm_acts"]
            checkpoint["model"] = with_writers(checkpoint["model"], norm_acts, self.model)
        return super()._load_model(checkpoint)

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


def _check_fit(state: dict[str, Any], own: dict[str, Any], path: str) -> None:
    """Raise a UserError if not one name of a checkpoint is the model's. Detectron2 only warns."""
    if not state or not own or any(name.removeprefix("module.") in own for name in state):
        return
    torchvisions = "layer1.0.conv1.weight" in state
    hint = "; tools/export_backbone.py --from torchvision (or timm) makes it fit"
    raise UserError(
        f"{path}: not one of its weights is in this model: it has such as {min(state)}, the model "
        f"such as {min(own)}{hint if torchvisions else ''}"
    )


def _check_shapes(state: dict[str, Any], own: dict[str, Any], path: str) -> None:
    """Raise a UserError for a weight of another shape. Detectron2 only warns."""
    for name, value in state.items():
        for place in (x for x in own if x == name or x.endswith(f".{name}")):
            if value.shape != own[place].shape:
                raise UserError(
                    f"{path}: {name} has the shape {tuple(value.shape)}, but {place} of the model "
                    f"{tuple(own[place].shape)}: it is of another backbone"
                )


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
