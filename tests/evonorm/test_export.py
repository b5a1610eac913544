"""TorchScript, ONNX and torch.compile give what eager mode gives."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

from evonorm import list_norm_acts
from tests.evonorm.unnamed import UNNAMED

pytestmark = pytest.mark.usefixtures("one_thread")


def x(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 2 + 0.5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "error::torch.jit.TracerWarning")
@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("name", [*list_norm_acts(), *UNNAMED])
def test_torchscript(name, activation, random_layer):
    layer = random_layer(name, 8, activation, num_groups=4).eval()
    scripted, traced = torch.jit.script(layer), torch.jit.trace(layer, x(2, 8, 5, 4))
    for shape in ((2, 8, 5, 4), (3, 8, 7, 2), (1, 8, 1, 1)):
        torch.testing.assert_close(scripted(x(*shape)), layer(x(*shape)))
        torch.testing.assert_close(traced(x(*shape)), layer(x(*shape)))
    affine = x(3, 8), x(3, 8)
    torch.testing.assert_close(scripted(x(3, 8, 5, 4), *affine), layer(x(3, 8, 5, 4), *affine))


class EveryLayer(nn.Module):
    """All layers side by side, so that one export serves for all."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


LEGACY = {"dynamo": False, "dynamic_axes": {"x": {0: "n", 2: "h", 3: "w"}}}
DYNAMO = {
    "dynamo": True,
    "verbose": False,
    "dynamic_shapes": {"x": {0: Dim("n"), 2: Dim("h"), 3: Dim("w")}},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "opset, exporter",
    [
        pytest.param(11, LEGACY, id="opset 11"),
        pytest.param(18, LEGACY, id="opset 18"),
        pytest.param(18, DYNAMO, id="opset 18 by torch.export", marks=pytest.mark.slow),
    ],
)
def test_onnx(opset, exporter, random_layer, tmp_path):
    cases = [(name, True) for name in (*list_norm_acts(), *UNNAMED)]
    cases += [(name, False) for name in ("EvoNormS0", "BN-ReLU", "GN-ReLU", "FRN")]
    model = EveryLayer([random_layer(n, 8, act, num_groups=4) for n, act in cases]).eval()
    outputs = [f"{name} {activation}" for name, activation in cases]
    file = str(tmp_path / "layers.onnx")
    torch.onnx.export(
        model,
        (x(2, 8, 5, 4),),
        file,
        opset_version=opset,
        input_names=["x"],
        output_names=outputs,
        **exporter,
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for shape in ((2, 8, 5, 4), (3, 8, 7, 2)):
        results = session.run(outputs, {"x": x(*shape).numpy()})
        for case, result, expected in zip(outputs, results, model(x(*shape))):
            torch.testing.assert_close(
                torch.from_numpy(result),
                expected,
                rtol=1e-4,
                atol=1e-5,
                msg=lambda m, case=case: f"{case}: {m}",
            )


@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0", "BN-ReLU", *UNNAMED])
def test_compile(name, random_layer):
    """As one graph, forward, backward and running variance."""
    torch.compiler.reset()  # it gives up after some recompilations, also those of other tests
    results = []
    for wrap in (lambda m: m, lambda m: torch.compile(m, fullgraph=True, backend="aot_eager")):
        layer = random_layer(name, 8, num_groups=4)
        leaf = x(2, 8, 5, 4).requires_grad_()
        y = wrap(layer)(leaf)
        y.sin().sum().backward()
        grads = [p.grad for p in layer.parameters()]
        results.append([y.detach(), leaf.grad, *grads, *layer.buffers()])
    for ours, expected in zip(*reversed(results)):
        torch.testing.assert_close(ours, expected)
