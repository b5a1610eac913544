"""Images and annotations for training and evaluation. An error names the file that is wrong."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.error import URLError

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch.utils.data import DataLoader, Sampler

from evonorm_runs.errors import UserError, one_line

# The paths among the metadata of Detectron2's data sets.
_PATHS = ("json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root")
_DATA_ERRORS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)


class TrainLoader:
    """Detectron2's training loader, which can start at any batch.

    The order of the images is a function of the sampler's seed, which belongs into a checkpoint. A
    loader that starts at batch n gives the batches of an uninterrupted one from its n-th on. This
    is exact if there are no worker processes (DATALOADER.NUM_WORKERS 0) and grouping holds no
    images back: DATALOADER.ASPECT_RATIO_GROUPING is False, or all images or none are landscape.

    Raises:
        UserError: a data set that can't be loaded.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.start = 0  # index of the first batch
        mapper = Mapper(cfg, True, **lsj_arguments(cfg))
        with loading(cfg.DATASETS.TRAIN):
            self._arguments = build_detection_train_loader.from_config(cfg, mapper=mapper)
        # Serialized as Detectron2 does later on, since workers would copy the large list.
        self._arguments["dataset"] = DatasetFromList(self._arguments["dataset"], copy=False)

    def state_dict(self) -> dict[str, int]:
        return {"seed": self._arguments["sampler"]._seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._arguments["sampler"]._seed = state["seed"]

    # A generator starts at its first item, and Detectron2 0.6 calls iter() before it loads a
    # checkpoint.

    def __iter__(self) -> Iterator[list[dict]]:
        yield from self.batches(self.start)

    def batches(self, start: int) -> Iterator[list[dict]]:
        """An endless iterator over the batches of this process from the one with index `start`."""
        sampler = _From(
            self._arguments["sampler"],
            start * self._arguments["total_batch_size"] // comm.get_world_size(),
        )
        loader = build_detection_train_loader(**{**self._arguments, "sampler": sampler})
        workers = loader if isinstance(loader, DataLoader) else loader.dataset
        # Each start would move the global generator, so the workers' seeds must not come from it.
        workers.generator = torch.Generator().manual_seed((torch.initial_seed() + start) % 2**63)
        yield from loader


class _From(Sampler):
    """The indices of a sampler from the one with index `start`."""

    def __init__(self, sampler: Sampler, start: int) -> None:
        self.sampler, self.start = sampler, start

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self.sampler, self.start, None)


class Mapper(DatasetMapper):
    """Detectron2's mapper. An error names the image, and the annotation, that is broken."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        try:
            return super().__call__(dataset_dict)
        except Exception as error:  # of any kind, as the data came from a file
            where = [str(dataset_dict.get("file_name")), *self._broken_annotation(dataset_dict)]
            plain = isinstance(error, (OSError, SyntaxError, ValueError))
            kind = [] if plain else [type(error).__name__]
            raise UserError(": ".join([*where, *kind, one_line(error)])) from error

    def _broken_annotation(self, dataset_dict: dict[str, Any]) -> Iterator[str]:
        """Name the annotation that can't be mapped, if the image can be mapped without any."""
        annotations = dataset_dict.get("annotations") or []
        for index, some in enumerate([[], *([annotation] for annotation in annotations)]):
            try:
                super().__call__({**dataset_dict, "annotations": some})
            except Exception:
                if some:
                    box = some[0].get("bbox")
                    yield f"annotation {index} of its {len(annotations)}, of bbox {box}"
                return


def build_test_loader(cfg: CfgNode, name: str) -> Iterable[list[dict]]:
    """Detectron2's loader of a data set for evaluation.

    Raises:
        UserError: the data set can't be loaded.
    """
    mapper = Mapper(cfg, False)
    with loading([name]):
        return build_detection_test_loader(cfg, name, mapper=mapper)


def lsj_arguments(cfg: CfgNode) -> dict[str, Any]:
    """The mapper's arguments for large-scale jitter (INPUT.LSJ), none if it is not enabled.

    Raises:
        ValueError: INPUT.CROP is enabled too.
    """
    lsj = cfg.INPUT.LSJ
    if not lsj.ENABLED:
        return {}
    if cfg.INPUT.CROP.ENABLED:
        raise ValueError("INPUT.CROP and INPUT.LSJ both crop: enable only one of them")
    crop = T.FixedSizeCrop((lsj.SIZE, lsj.SIZE))
    if cfg.INPUT.MASK_FORMAT == "bitmask":
        crop.seg_pad_value = 0  # 255 means "ignored" in a semantic map, but "inside" in a bitmask
    resize = T.ResizeScale(lsj.MIN_SCALE, lsj.MAX_SCALE, lsj.SIZE, lsj.SIZE)
    flips = build_augmentation(cfg, is_train=True)[1:]  # without the resizing that comes first
    return {"augmentations": [resize, crop, *flips], "recompute_boxes": cfg.MODEL.MASK_ON}


def check_names(names: Sequence[str]) -> None:
    """Raise UserError for a data set that Detectron2 does not know, or a path that is missing."""
    for name in names:
        known = DatasetCatalog.list()
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"; close to it are {', '.join(close)}" if close else ""
            raise UserError(f"DATASETS: no data set is named {name!r}{hint}")
        metadata = MetadataCatalog.get(name)
        for path in filter(None, map(metadata.get, _PATHS)):
            if "://" not in path and not PathManager.exists(path):
                try:
                    DatasetCatalog.get(name)  # which may make the data
                except OSError as error:
                    if error.errno is None:  # the loader's own, which says how to make the data
                        raise UserError(one_line(error)) from error
                if not PathManager.exists(path):
                    raise UserError(f"{name}: {path} does not exist")


@contextlib.contextmanager
def loading(names: Sequence[str]) -> Iterator[None]:
    """Turn what is raised while data sets are loaded into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except _DATA_ERRORS as error:
        raise UserError(_what_is_wrong(names, error)) from error


def _what_is_wrong(names: Sequence[str], error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, URLError):  # it names the file itself
        return one_line(error)
    files = list(filter(None, (MetadataCatalog.get(name).get("json_file") for name in names)))
    for path in files:
        try:
            with PathManager.open(path) as file:
                content = json.load(file)
        except OSError as not_read:
            return f"{path}: {one_line(not_read)}"
        except (ValueError, RecursionError) as not_json:
            return f"{path}: broken JSON: {one_line(not_json)}"
        lacks = {"images", "categories"} - set(content if isinstance(content, dict) else ())
        if lacks:
            return f"{path}: not in COCO's format: it lacks {' and '.join(sorted(lacks))}"
    return f"{', '.join([*names, *files])}: {type(error).__name__}: {one_line(error)}"
