"""TorchScript by Detectron2's own functions: what works with GN works with a norm-act."""

import io

import pytest
import torch
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes
from detectron2.utils.testing import assert_instances_allclose, convert_scripted_instances
from torch import Tensor, nn

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),  # in Detectron2's testing
]
RETINANET = {
    "path": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "keys": ("RESNETS.NORM", "FPN.NORM", "RETINANET.NORM"),
}
PAPER = (
    *("MODEL.BACKBONE.NAME", "build_paper_resnet_fpn_backbone"),
    *("MODEL.RPN.HEAD_NAME", "PaperRPNHead"),
    *("MODEL.ROI_HEADS.NAME", "build_paper_roi_heads"),
    *("MODEL.ROI_BOX_HEAD.NAME", "PaperConvFCHead"),
    *("MODEL.ROI_MASK_HEAD.NAME", "PaperConvUpsampleHead"),
)
FIELDS = {
    "proposal_boxes": Boxes,
    "objectness_logits": Tensor,
    "pred_boxes": Boxes,
    "scores": Tensor,
    "pred_classes": Tensor,
    "pred_masks": Tensor,
}
NORMS = ["EvoNormS0", "EvoNormB0", "max(x, v0) / (1 + abs(v1 * mean_b(x)))"]


@pytest.fixture
def trained(build, batch, train_step):
    """A model in evaluation mode whose running statistics and parameters are not the initial."""

    @torch.enable_grad()
    def make(cfg):
        model = build(cfg)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1 and "norm" in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        train_step(model, batch())
        return model.eval()

    return make


def reload(script):
    file = io.BytesIO()
    torch.jit.save(script, file)
    file.seek(0)
    return torch.jit.load(file)


def flat(y):
    if isinstance(y, Tensor):
        return [y]
    return [x for part in (y.values() if isinstance(y, dict) else y) for x in flat(part)]


class Flat(nn.Module):
    """For tracing, which wants a tuple of tensors."""

    def __init__(self, module, method="forward"):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, x):
        return tuple(flat(getattr(self.module, self.method)(x)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("part", ["backbone", "rpn", "retinanet", "box", "mask"])
@torch.no_grad()
def test_parts(part, norm, trained, tiny_cfg):
    model = trained(tiny_cfg(norm, **(RETINANET if part == "retinanet" else {})))
    levels = [
        [torch.randn(1, 32, s, s) for s in sizes] for sizes in ([16, 8, 4, 2, 1], [9, 5, 3, 2, 1])
    ]
    path, first, second = {
        "backbone": ("backbone", torch.randn(1, 3, 64, 64), torch.randn(2, 3, 96, 64)),
        "rpn": ("proposal_generator.rpn_head", *levels),
        "retinanet": ("head", *levels),
        "box": ("roi_heads.box_head", torch.randn(3, 32, 7, 7), torch.randn(5, 32, 7, 7)),
        "mask": ("roi_heads.mask_head", torch.randn(3, 32, 14, 14), torch.randn(5, 32, 14, 14)),
    }[part]
    module = model.get_submodule(path)
    method = "layers" if part == "mask" else "forward"  # whose own forward takes Instances
    eager = flat(getattr(module, method)(second))
    traced = torch.jit.trace(Flat(module, method), (first,), check_trace=False)
    outputs = {"traced": reload(traced)(second)}
    if part != "mask":
        outputs["scripted"] = reload(scripting_with_instances(module, FIELDS))(second)
    for how, output in outputs.items():
        assert len(flat(output)) == len(eager), how
        for a, b in zip(flat(output), eager):
            close = {"rtol": 1e-4, "atol": 1e-5 * float(b.abs().max())}
            torch.testing.assert_close(a, b, **close, msg=lambda m, how=how: f"{how}: {m}")


DETECTORS = {
    "mask": ((), {}),
    "paper": (PAPER, {}),
    "retinanet": (("TEST.DETECTIONS_PER_IMAGE", 100), RETINANET),
}
CASES = [(norm, d) for norm in NORMS for d in DETECTORS]
CASES += [("EvoNormS0", "linear"), ("GN", "mask"), ("GN", "paper")]
DETECTORS["linear"] = (("MODEL.EVONORM.LINEAR", "GN"), {})


def images(size):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("norm, detector", CASES)
@torch.no_grad()
def test_detectors_traced(norm, detector, trained, tiny_cfg):
    overrides, where = DETECTORS[detector]
    model = trained(tiny_cfg(norm, *overrides, width=32 if norm == "GN" else 8, **where))

    def inference(model, image):
        if detector == "retinanet":
            return model.forward([{"image": image}])[0]["instances"]
        return model.inference([{"image": image}], do_postprocess=False)[0]

    # Traced at one size, used at another.
    adapter = TracingAdapter(model, images(192), inference)
    traced = reload(torch.jit.trace(adapter, images(128), check_trace=False))
    eager = inference(model, images(192))
    assert len(eager) > 0
    assert_instances_allclose(
        eager, adapter.outputs_schema(traced(images(192))), size_as_tensor=True, rtol=1e-4
    )


@pytest.mark.parametrize("norm, detector", CASES)
@torch.no_grad()
def test_detectors_scripted(norm, detector, trained, tiny_cfg):
    overrides, where = DETECTORS[detector]
    model = trained(tiny_cfg(norm, *overrides, width=32 if norm == "GN" else 8, **where))
    script = scripting_with_instances(model, FIELDS)
    batch = [{"image": images(128)}, {"image": images(192)}]
    if detector == "retinanet":
        eager = model(batch)[0]["instances"]
        scripted = detector_postprocess(convert_scripted_instances(script(batch)[0]), 128, 128)
    else:
        eager = model.inference(batch, do_postprocess=False)[0]
        scripted = script.inference(batch, do_postprocess=False)[0]
    assert len(eager) > 0
    assert_instances_allclose(eager, scripted, rtol=1e-4)
