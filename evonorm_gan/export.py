"""A generator as TorchScript or ONNX, compared with the generator itself before it is written.

Both take z (N, dim_z) float32 and y (N,) int64 for any N, and give images (N, 3, R, R) float32 in
[-1, 1]; they do not check their inputs.
"""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from evonorm_runs.errors import UserError
from evonorm_runs.exporters import quiet_exporters
from evonorm_runs.files import atomic_write

from .sampling import latents

TOLERANCE = 1e-4  # of images in [-1, 1]


def export_torchscript(G: nn.Module, path: Path) -> float:
    """Trace G and write it for `torch.jit.load`; G itself stays as it is.

    Returns:
        the largest difference to G's images.

    Raises:
        UserError: it is more than 1e-4; nothing is written then.
    """
    model = _plain(G)
    buffer = io.BytesIO()
    with quiet_exporters():
        torch.jit.save(torch.jit.trace(model, _inputs(model, 2), check_trace=False), buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
    return _write_if_equal(model, loaded, buffer.getvalue(), path)


def export_onnx(G: nn.Module, path: Path, opset: int = 18) -> float:
    """Write G as ONNX, inputs "z" and "y", output "images"; else as :func:`export_torchscript`.

    Raises:
        UserError: also for an opset before 18, or without a package that it needs.
    """
    if opset < 18:  # PyTorch's exporter would silently take 18
        raise UserError(f"opset is {opset}, but should be 18 or later")
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        need = "writing ONNX needs `pip install onnxruntime onnxscript`"
        raise UserError(f"{error}: {need}") from error
    model = _plain(G)
    n = torch.export.Dim("n")
    with quiet_exporters():
        program = torch.onnx.export(
            model,
            _inputs(model, 2),
            opset_version=opset,
            input_names=["z", "y"],
            output_names=["images"],
            dynamic_shapes={"z": {0: n}, "y": {0: n}},
            dynamo=True,
            verbose=False,
        )
    data = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def exported(z: Tensor, y: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["images"], {"z": z.numpy(), "y": y.numpy()})[0])

    return _write_if_equal(model, exported, data, path)


def _plain(G: nn.Module) -> nn.Module:
    """A copy for evaluation on the CPU, with its weights spectrally normalised once and for all."""
    model = copy.deepcopy(G).cpu().float().eval().requires_grad_(False)
    for module in model.modules():
        if parametrize.is_parametrized(module):
            # Not remove_parametrizations, which takes `weight` from the class that G has too.
            weight, plain = module.weight, parametrize.type_before_parametrizations(module)
            del module.parametrizations
            module.__class__ = plain
            module.weight = nn.Parameter(weight, requires_grad=False)
    return model


def _inputs(model: nn.Module, num: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return latents(num, model.dim_z, model.num_classes, seed)


def _write_if_equal(model: nn.Module, exported: Callable, data: bytes, path: Path) -> float:
    z, y = _inputs(model, 3, seed=1)  # another batch size than the traced one
    with torch.no_grad():
        difference = (exported(z, y) - model(z, y)).abs().max().item()
    if not difference <= TOLERANCE:
        raise UserError(
            f"{path} is not written: its images would differ by {difference:.1e} from the "
            f"generator's, by more than {TOLERANCE:.0e}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(data)
    return difference
