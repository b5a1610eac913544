"""IS, FID, KID, precision, recall, density and coverage of a generator or of images.

All but the last two are torch-fidelity's functions.

torch-fidelity takes images by itself too, but can't draw from a class-conditional generator
(version 0.4.0), and its cache does not notice that a data set has changed. So images and features
are ours here, and the formulas are its. It ignores settings whose names it does not know, and its
defaults are its own to change: all that matter are in SETTINGS.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from evonorm_runs import distributed
from evonorm_runs.errors import UserError

from .. import sampling
from . import clean_inception
from .density import density_and_coverage
from .extractor import Extractor, share, shares
from .real_statistics import RealStatistics, subset, subset_size
from .reference import Reference, open_reference

log = logging.getLogger(__name__)

METRICS = ("IS", "IS_std", "FID", "KID", "precision", "recall", "density", "coverage")
# How many images precision, recall, density and coverage are of: they depend on it, so that only
# those of the same numbers can be compared.
COUNTS = ("precision_recall_images", "precision_recall_real_images")
WITHOUT_IMAGES = METRICS[:3]  # what needs no real images but their statistics
SPLITS = 10  # of IS (paper, section 5.5, after Salimans et al. 2016)
KID_SUBSET = 1000  # images per subset, fewer if there are fewer
SETTINGS = {
    "rng_seed": 2020,
    "kid_subsets": 100,
    "kid_kernel": "poly",
    "kid_kernel_poly_degree": 3,
    "kid_kernel_poly_gamma": None,  # 1 / width
    "kid_kernel_poly_coef0": 1,
    "prc_neighborhood": 3,
    "verbose": False,
}
# Precision and recall take all distances between images at once; from more images, rows of them in
# blocks.
ALL_AT_ONCE, BLOCK = 10_000, 2_000


def metric_key(name: str, extractor: str) -> str:
    """What a metric is called when it is printed or written.

    >>> metric_key("FID", "digits")
    'FID-digits (not comparable with Inception)'
    """
    if extractor == "inception-v3-compat":
        return name
    if extractor == clean_inception.NAME:
        return f"{name}-clean"
    return f"{name}-{extractor.rpartition('/')[2]} (not comparable with Inception)"


class Evaluator:
    """Compares images with others, as cfg.TEST says. All processes must take part in all calls.

    Args:
        dataset: the training set, which TEST.REFERENCE "train" stands for; opened if it is None.

    Raises:
        UserError: the extractor's weights can't be had, or there are too few real images.
    """

    def __init__(self, cfg: CfgNode, dataset: Dataset | None, device: str | torch.device) -> None:
        self.cfg = cfg
        given = dataset is not None and cfg.TEST.REFERENCE == "train"
        reference = Reference(dataset) if given else open_reference(cfg)
        self.extractor = Extractor(cfg, device)
        self._noted: set[tuple[str, int]] = set()
        images = reference.images
        names = METRICS + COUNTS if images is not None else WITHOUT_IMAGES
        self.names = names if self.extractor.has_classes else names[names.index("FID") :]
        if images is not None:
            _check_number(len(images), "the real images")
        self.real, about_real = reference.statistics(self.extractor, cfg)
        self.about = [self.extractor.describe(), about_real]
        if images is not None:
            self._note_number(len(images), "real images")

    def evaluate(
        self, G: nn.Module, seed: int = 0, truncation: float | None | Literal["config"] = "config"
    ) -> dict[str, float]:
        """The metrics of TEST.NUM_SAMPLES images of a generator, of all classes alike.

        They do not depend on the number of processes. G itself stays as it is.

        Args:
            truncation: instead of TEST.TRUNCATION; None: none.

        Returns:
            by :func:`metric_key`, each of METRICS, and COUNTS; the same in all processes. Without
            real images, if TEST.REFERENCE has mu and sigma only, those that need none.

        Raises:
            UserError: G makes NaN, or there are too few samples.
        """
        test = self.cfg.TEST
        if truncation == "config":
            truncation = test.TRUNCATION
        G = copy.deepcopy(G)
        by = test.TRUNCATE_BY
        sampling.standing_statistics(
            G, test.STANDING_BATCHES, test.BATCH_SIZE, seed, truncation, by
        )
        z, y = sampling.latents(
            test.NUM_SAMPLES, G.dim_z, G.num_classes, seed, truncation, truncate_by=by
        )
        parts = list(shares(test.NUM_SAMPLES, test.BATCH_SIZE))
        mine = torch.cat([index for index, _ in parts])
        images = sampling.generate(G, z[mine], y[mine], test.BATCH_SIZE)
        batches = ((batch, size) for batch, (_, size) in zip(images, parts))
        return self._metrics(self.extractor.features(batches, test.NUM_SAMPLES, "samples"))

    def evaluate_images(self, batches: Iterable[Tensor]) -> dict[str, float]:
        """As :meth:`evaluate`, for images (n, 3, H, W) uint8, the same ones in all processes."""
        parts = ((images[share(0, len(images))], len(images)) for images in batches)
        return self._metrics(self.extractor.features(parts, None, "images"))

    def _metrics(self, features: tuple[Tensor, ...] | None) -> dict[str, float]:
        # The main process computes, and all learn what it found, or that there were too few.
        values = torch.full((1, len(self.names) + 1), torch.nan, dtype=torch.float64)
        if features is not None:
            num = values[0, -1] = len(features[0])
            self._note_number(num, "images")
            if num >= SPLITS:
                logits = features[1] if self.extractor.has_classes else None
                found = compute_metrics(features[0], logits, self.real, subset_size(self.cfg))
                values[0, :-1] = values.new_tensor([found[name] for name in self.names])
        *values, num = distributed.gather(values)[0].tolist()
        _check_number(int(num), "the images")
        found = dict(zip(self.names, values))
        counts = {name: int(found.pop(name)) for name in COUNTS if name in found}
        return {metric_key(name, self.extractor.name): x for name, x in found.items()} | counts

    def _note_number(self, num: int, what: str) -> None:
        """Say what so few images do to the metrics, once."""
        width = len(self.real.mu) if self.real else 0
        for least, note in (
            (KID_SUBSET, f"KID takes subsets of {num}, not {KID_SUBSET}"),
            (width, f"FID is far too high with fewer images than features ({width})"),
        ):
            if SPLITS <= num < least and (note, num) not in self._noted:
                self._noted.add((note, num))
                log.warning("%d %s are few: %s", num, what, note)


def compute_metrics(
    features: Tensor, logits: Tensor | None, real: RealStatistics, limit: int
) -> dict[str, float]:
    """METRICS and COUNTS from features of at least 10 images (N, width), logits (N, classes).

    Without logits there is no IS. All but IS and FID look at no more than `limit` of the images,
    and need features of real ones.
    """
    values = {}
    if logits is not None:
        isc = isc_features_to_metric(logits, SPLITS, True, SETTINGS["rng_seed"])
        values = {"IS": isc["inception_score_mean"], "IS_std": isc["inception_score_std"]}
    fid = fid_statistics_to_metric(
        fid_features_to_statistics(features.double()),
        {"mu": real.mu.astype(np.float64), "sigma": real.sigma},
        False,
    )
    values["FID"] = fid["frechet_inception_distance"]
    if real.features is None:
        return values
    some = features[subset(len(features), limit)]
    size = min(KID_SUBSET, len(some), len(real.features))
    kid = kid_features_to_metric(some, real.features, kid_subset_size=size, **SETTINGS)
    blocks = _blocks(some, real.features)
    prc = prc_features_to_metric(some, real.features, **SETTINGS, **blocks)
    density, coverage = density_and_coverage(some, real.features, blocks["prc_batch_size"])
    return {
        **values,
        "KID": kid["kernel_inception_distance_mean"],
        "precision": prc["precision"],
        "recall": prc["recall"],
        "density": density,
        "coverage": coverage,
        COUNTS[0]: len(some),
        COUNTS[1]: len(real.features),
    }


def _blocks(*features: Tensor) -> dict[str, Any]:
    """torch-fidelity's settings: all distances at once, or, for many images, in blocks of rows."""
    many = max(map(len, features)) > ALL_AT_ONCE
    return {"save_cpu_ram": many, "prc_batch_size": BLOCK if many else ALL_AT_ONCE}


def _check_number(num: int, what: str) -> None:
    if num < SPLITS:
        raise UserError(f"{what}: {num} are too few; IS is a mean over {SPLITS} splits of them")
