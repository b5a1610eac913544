"""Detectors small enough to train in a test: stock configs, made narrow."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from evonorm_d2 import add_evonorm_config, resolve
from evonorm_d2.data.own import _ours

MASK_RCNN = "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml"
NORM_KEYS = ("RESNETS.NORM", "FPN.NORM", "RPN.NORM", "ROI_BOX_HEAD.NORM", "ROI_MASK_HEAD.NORM")


@pytest.fixture(autouse=True)
def quiet_and_alike():
    """One thread, one seed, the storage that Detectron2's heads log into; no log is left."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with EventStorage(0):
        yield
    torch.set_num_threads(threads)
    for name in ("detectron2", "fvcore"):  # default_setup's write into this test's output
        logging.getLogger(name).handlers.clear()


@pytest.fixture
def forget_own_data():
    """Unregisters the data sets of DATASETS.COCO at the end."""
    yield
    for name in list(_ours):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
        _ours.discard(name)


def _narrow(cfg, width):
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = width
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 4 * width
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = width
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 20
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 8
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.RETINANET.NUM_CONVS = 2
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    cfg.TEST.DETECTIONS_PER_IMAGE = 4
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 64


@pytest.fixture
def stock_cfg():
    """stock_cfg(path): a config of Detectron2's, with the plugin's keys, unresolved."""

    def make(path=MASK_RCNN, *overrides):
        cfg = add_evonorm_config(get_cfg())
        cfg.merge_from_file(model_zoo.get_config_file(path))
        cfg.merge_from_list(list(overrides))
        return cfg

    return make


@pytest.fixture
def tiny_cfg(stock_cfg):
    """tiny_cfg(norm): a narrow detector with this norm at all its NORM keys, unresolved."""

    def make(norm=None, *overrides, path=MASK_RCNN, keys=NORM_KEYS, width=8):
        cfg = stock_cfg(path)
        _narrow(cfg, width)
        if norm is not None:
            cfg.merge_from_list([x for key in keys for x in (f"MODEL.{key}", norm)])
        cfg.merge_from_list(list(overrides))
        return cfg

    return make


@pytest.fixture
def build():
    """build(cfg): the model of a resolved config, its parameters from a fixed seed."""

    def make(cfg):
        torch.manual_seed(1)
        return build_model(resolve(cfg))

    return make


@pytest.fixture
def batch():
    """batch(n, size): n images with two objects each and semantic labels."""

    def make(n=2, size=64, objects=True):
        generator = torch.Generator().manual_seed(0)
        boxes = torch.tensor([[4.0, 4, 40, 40], [20, 10, 60, 50]])[: 2 * objects]
        images = []
        for _ in range(n):
            x = Instances((size, size))
            x.gt_boxes = Boxes(boxes.reshape(-1, 4))
            x.gt_classes = torch.tensor([0, 1])[: 2 * objects]
            x.gt_masks = PolygonMasks([[b[[0, 1, 2, 1, 2, 3]].numpy()] for b in boxes])
            shape = (3, size, size)
            images.append(
                {
                    "image": torch.randint(256, shape, dtype=torch.uint8, generator=generator),
                    "instances": x,
                    "height": size,
                    "width": size,
                    "sem_seg": torch.randint(4, shape[1:], generator=generator),
                }
            )
        return images

    return make


@pytest.fixture
def train_step():
    """train_step(model, images): the losses, after a backward pass through their sum."""

    def step(model, images):
        model.train()
        torch.manual_seed(2)  # proposals are sampled
        losses = model(images)
        sum(losses.values()).backward()
        return losses

    return step
