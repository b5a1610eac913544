"""DETECTRON2_ENV_MODULE=evonorm_d2.env: tools of Detectron2's, which know nothing of the plugin."""

import json
import os
import subprocess
import sys

import pytest
from detectron2 import model_zoo

from evonorm_d2.data import write_digits

MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
# What Detectron2's train_net.py does, then its demo's predictor. Nothing here names the plugin.
TRAIN_NET = """
import json, os
import cv2, torch
from detectron2 import model_zoo
from detectron2.config import get_cfg, instantiate
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.engine import default_argument_parser, default_setup
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer

torch.set_num_threads(1)
args = default_argument_parser().parse_args()
cfg = get_cfg()
cfg.merge_from_file(args.config_file)
cfg.merge_from_list(args.opts)
cfg.freeze()
default_setup(cfg, args)
trainer = DefaultTrainer(cfg)
trainer.resume_or_load(resume=args.resume)
trainer.train()

model = trainer.model
norm_acts = [m for m in model.modules() if getattr(m, "norm_act", "")]
ours = {id(p) for m in norm_acts for p in m.parameters()}

def decays(optimizer):
    groups = optimizer.param_groups
    return sorted({(id(p) in ours, g["weight_decay"]) for g in groups for p in g["params"]})

predictor_cfg = cfg.clone()
predictor_cfg.defrost()
predictor_cfg.MODEL.WEIGHTS = cfg.OUTPUT_DIR + "/model_final.pth"
predictor = DefaultPredictor(predictor_cfg)
state, loaded = model.state_dict(), predictor.model.state_dict()
image = cv2.imread(os.environ["IMAGE"])

retinanet = get_cfg()
retinanet.merge_from_file(model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
retinanet.merge_from_list(["MODEL.RETINANET.NORM", "EvoNormB0", "MODEL.DEVICE", "cpu"])
other = get_cfg()
other.merge_from_file(model_zoo.get_config_file("Base-RCNN-FPN.yaml"))
other.merge_from_list(["MODEL.FPN.NORM", "EvoNormS0"])
other.MODEL.BACKBONE.NAME = "build_regnet_fpn_backbone"
stock = get_cfg()
stock.merge_from_file(model_zoo.get_config_file("Base-RCNN-FPN.yaml"))
stock.merge_from_list(["MODEL.DEVICE", "cpu"])
try:
    refusal = build_model(other) and ""
except ValueError as error:
    refusal = str(error)
lazy = model_zoo.get_config("common/optim.py").SGD  # as lazyconfig_train_net.py builds it
lazy.params.model = model
result = {
    "norm_acts": len(norm_acts),
    "decays": decays(trainer.optimizer),
    "decays of a training loop of one's own": decays(build_optimizer(cfg, model)),
    "decays of a LazyConfig": decays(instantiate(lazy)),
    "loaded": all(torch.equal(state[k], loaded[k]) for k in state),
    "instances": len(predictor(image)["instances"]),
    "retinanet": type(build_model(retinanet)).__name__,
    "refusal": refusal,
    "stock": sorted({type(m).__module__.partition(".")[0] for m in build_model(stock).modules()}),
}
print("result:", json.dumps(result))
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets") / "digits"
    write_digits(folder, train=4, val=2)
    return folder


def run(*command, **environment):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_detectron2s_own_tools(digits, tmp_path):
    script = tmp_path / "train_net.py"
    script.write_text(TRAIN_NET)
    norms = ("RESNETS.NORM", "FPN.NORM", "RPN.NORM")
    out = run(
        str(script),
        *("--config-file", model_zoo.get_config_file(MASK_RCNN)),
        *(x for key in norms for x in (f"MODEL.{key}", "EvoNormB0")),
        *("MODEL.ROI_MASK_HEAD.NORM", "x * tanh(v1 * x) / std_g(x)", "MODEL.EVONORM.LINEAR", "GN"),
        *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_AT", "0"),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.FPN.OUT_CHANNELS", "32"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", "10", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
        *("INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", "128"),
        *("DATASETS.TRAIN", "('digits_train',)", "DATASETS.TEST", "()"),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()"),
        *("DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(tmp_path / "out")),
        *("INPUT.MASK_FORMAT", "bitmask", "SOLVER.BASE_LR", "0.001", "SEED", "1"),
        DETECTRON2_ENV_MODULE="evonorm_d2.env",
        DETECTRON2_DATASETS=str(digits.parent),
        IMAGE=str(next(digits.glob("val/*.png"))),
    )
    result = json.loads(out.rpartition("result:")[2])
    assert result["norm_acts"] == 53 + 8 + 5 + 4
    assert result["decays"] == [[False, 1e-4], [True, 0.0]]
    assert result["decays of a training loop of one's own"] == result["decays"]
    assert result["decays of a LazyConfig"] == result["decays"]
    assert result["loaded"] and result["instances"] > 0
    assert result["retinanet"] == "NormActRetinaNet"
    assert result["refusal"].startswith("MODEL.FPN.NORM is EvoNormS0, but 'build_regnet_fpn_b")
    assert "evonorm_d2" not in result["stock"] and "detectron2" in result["stock"]
    losses = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    assert json.loads(losses[-1])["iteration"] == 1


@pytest.mark.parametrize(
    "first", ["evonorm_d2", "evonorm_d2.train", "detectron2", "evonorm_d2.env"]
)
def test_any_module_may_be_imported_first(first):
    code = f"import {first}; from detectron2.config import get_cfg; print(get_cfg().MODEL.EVONORM)"
    environment = {**os.environ, "DETECTRON2_ENV_MODULE": "evonorm_d2.env"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "NUM_GROUPS: 32" in done.stdout, done.stderr
