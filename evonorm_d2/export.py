"""A run's detector as TorchScript, ONNX or torch.export, compared with it before it is written."""

from __future__ import annotations

import io
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN, PanopticFPN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn
from torch.nn import functional as F

from evonorm_runs.errors import UserError
from evonorm_runs.exporters import quiet_exporters
from evonorm_runs.files import atomic_write

TOLERANCE = 1e-3  # of an output, relative to its largest value
OPSET = 17
RUNS = 3  # which a time is the median of

Function = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass
class Report:
    """What an exported model is like.

    Attributes:
        outputs: their names.
        objects: how many were found in each image that was compared; of a backbone none.
        differences: the largest to the model's own, by the names of outputs; boxes in pixels.
        seconds: an image's time, the median of three, of the model and of the exported one.
    """

    outputs: list[str]
    objects: list[int]
    differences: dict[str, float]
    seconds: tuple[float, float]


def export_model(
    model: nn.Module, image: Tensor, form: str, path: Path, backbone: bool = False
) -> Report:
    """Write a model by Detectron2's own TracingAdapter, if it gives what the model itself gives.

    A detector takes an image (3, H, W) uint8 of any size, in the colours of INPUT.FORMAT, and gives
    the fields of Detectron2's Instances, sorted by name: boxes in pixels of that image, masks
    (N, 1, 28, 28) as the mask head gives them; `sem_seg` too in Panoptic FPN. A backbone takes
    normalised images (1, 3, H, W) float32, with sides that are multiples of its stride, and gives
    its features, sorted by name. With torch.export the size is that of the image.

    Args:
        model: in evaluation mode; the file keeps its device, except ONNX.
        image: (3, H, W) uint8, traced; it and a smaller one are compared.
        form: one of FORMATS.
        backbone: write the model's backbone with its FPN only.

    Raises:
        UserError: the format can't take the model, a package is missing, no object is in the image,
            or the outputs would differ. Nothing is written then.
    """
    if backbone:
        run, examples = _features, [_as_batch(model, x) for x in (image, _smaller(image))]
    else:
        _check_detector(model)
        run, examples = _instances, [image, _smaller(image)]
    examples = examples[:1] if form == "torch.export" else examples
    adapter = TracingAdapter(model, examples[0], run).eval()
    with torch.no_grad():
        outputs = sorted(run(model, examples[0]))
        expected = [adapter(x) for x in examples]
    objects = [] if backbone else [len(y[outputs.index("scores")]) for y in expected]
    if 0 in objects:
        raise UserError("no object was found in the image, so nothing could be compared")
    kind = "backbone" if backbone else type(model).__name__
    hint = "" if backbone else "; --backbone exports the backbone with its FPN"
    try:
        with quiet_exporters(), torch.no_grad():
            data, exported = FORMATS[form](adapter, examples[0], outputs)
    except UserError:
        raise
    except Exception as error:  # exporters raise many kinds for what they can't take
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{form} can't take this {kind}: {reason:.200}{hint}") from error
    differences = dict.fromkeys(outputs, 0.0)
    for x, y in zip(examples, expected):
        with torch.no_grad():
            found = exported(x)
        for name, value in _compare(outputs, found, y).items():
            differences[name] = max(differences[name], value)
    seconds = _seconds(adapter, examples[0]), _seconds(exported, examples[0])
    with atomic_write(path) as file:
        file.write(data)
    return Report(outputs, objects, differences, seconds)


def _instances(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    if isinstance(model, PanopticFPN):
        found, maps = model.inference([{"image": image}], do_postprocess=False)
        return {**found[0].get_fields(), "sem_seg": maps[0]}
    if isinstance(model, GeneralizedRCNN):
        return model.inference([{"image": image}], do_postprocess=False)[0].get_fields()
    return model([{"image": image}])[0]["instances"].get_fields()


def _features(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    return model.backbone(images)


def _check_detector(model: nn.Module) -> None:
    if not isinstance(model, (GeneralizedRCNN, DenseDetector)):
        raise UserError(
            f"a {type(model).__name__} predicts no instances: --backbone exports its backbone"
        )


def _as_batch(model: nn.Module, image: Tensor) -> Tensor:
    """An image as the backbone gets it: normalised and padded."""
    stride = model.backbone.size_divisibility or 1
    padding = (0, -image.shape[2] % stride, 0, -image.shape[1] % stride)
    return F.pad((image - model.pixel_mean) / model.pixel_std, padding)[None]


def _smaller(image: Tensor) -> Tensor:
    return F.interpolate(image[None].float(), scale_factor=0.75, mode="bilinear")[0].to(image.dtype)


def _torchscript(adapter: nn.Module, x: Tensor, outputs: list[str]) -> tuple[bytes, Function]:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(adapter, (x,), check_trace=False), file)
    file.seek(0)
    return file.getvalue(), torch.jit.load(file)


def _onnx(adapter: nn.Module, x: Tensor, outputs: list[str]) -> tuple[bytes, Function]:
    """By PyTorch's exporter of traced graphs: the newer one can't take steps of changing length."""
    try:
        import onnx  # noqa: F401  torch.onnx needs it
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{error}: writing ONNX needs `pip install onnx onnxruntime`") from error
    name, first = ("image", 1) if x.dim() == 3 else ("images", 2)
    of_features = {2: "rows", 3: "columns"}
    axes = {output: {0: "objects"} if first == 1 else of_features for output in outputs}
    axes[name] = {first: "height", first + 1: "width"}
    axes.pop("sem_seg", None)
    file = io.BytesIO()
    torch.onnx.export(
        adapter,
        (x,),
        file,
        input_names=[name],
        output_names=outputs,
        dynamic_axes=axes,
        opset_version=OPSET,
        dynamo=False,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=providers)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {name: x.cpu().numpy()})))

    return file.getvalue(), run


def _torch_export(adapter: nn.Module, x: Tensor, outputs: list[str]) -> tuple[bytes, Function]:
    file = io.BytesIO()
    torch.export.save(torch.export.export(adapter, (x,), strict=False), file)
    file.seek(0)
    return file.getvalue(), torch.export.load(file).module()


FORMATS = {"torchscript": _torchscript, "onnx": _onnx, "torch.export": _torch_export}


def _compare(
    names: list[str], exported: tuple[Tensor, ...], expected: tuple[Tensor, ...]
) -> dict[str, float]:
    """The largest differences by name. Raises UserError for a different shape or value."""
    found = {}
    for name, y, right in zip(names, exported, expected):
        if y.shape != right.shape:
            raise UserError(
                f"not written: its {name} would have the shape {tuple(y.shape)}, the model's have "
                f"{tuple(right.shape)}"
            )
        found[name] = float((y.cpu().double() - right.cpu().double()).abs().max())
        if not found[name] <= TOLERANCE * max(1.0, float(right.abs().max())):
            raise UserError(f"not written: its {name} would differ by {found[name]:.1e}")
    return found


def _seconds(function: Function, x: Tensor) -> float:
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        with torch.no_grad():
            function(x)
            if x.is_cuda:
                torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one prepares
