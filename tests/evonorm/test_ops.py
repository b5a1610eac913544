"""The fused operators, native and reference, against the formulas in float64."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evonorm import build_norm_act, formula_of, ops
from evonorm.ops.reference import KINDS

forward = torch.ops.evonorm.forward
backward = torch.ops.evonorm.backward
NATIVE = ops.backends()["cpu"].startswith("native")
BACKENDS = [
    pytest.param(
        contextlib.nullcontext,
        id="native",
        marks=pytest.mark.skipif(not NATIVE, reason="the CPU kernels were not built"),
    ),
    pytest.param(ops.reference_only, id="reference"),
]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
EPS = 1e-5


@pytest.fixture(autouse=True)
def one_thread():
    """Many tiny calls: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def arguments(kind, shape, dtype=torch.float64, per_sample=False, own_var=True, seed=0):
    """x, v, var, weight, bias, each requiring its gradient, or None."""
    n, c = shape[:2]
    affine = (n, c) if per_sample else (c,)
    return [
        None if t is None else t.to(dtype).requires_grad_()
        for t in (
            2 * random(*shape, seed=seed) + 0.5,
            random(c, seed=seed + 1) if kind in ("B0", "S0") else None,
            None if own_var or kind[0] == "S" else random(c, seed=seed + 2).abs() + 0.5,
            random(*affine, seed=seed + 3),
            random(*affine, seed=seed + 4),
        )
    ]


def formula(kind, groups, x, v, var, weight, bias):
    """The formula of the kind, with the batch's variance where none is given."""
    v = torch.ones(()) if v is None else v[:, None, None]
    if var is None:
        var = x.var((0, 2, 3), unbiased=False)
    function = formula_of(f"EvoNorm{kind}").function
    y = function(x, x, v, [var[:, None, None]], groups, EPS)
    return y * weight[..., None, None] + bias[..., None, None]


SHAPES = [  # with groups: vectors and what is left over, one plane in pieces, many small ones
    ((3, 8, 5, 7), 4),
    ((2, 40, 3, 11), 8),
    ((1, 4, 130, 129), 2),
    ((2, 64, 4, 4), 1),
    ((3, 1, 6, 9), 1),
    ((5, 33, 2, 1), 11),
]


@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@each_kind
def test_against_the_formula(kind, dtype, backend):
    """Output and gradients, in both layouts, with gamma and beta of channels and of samples."""
    variants = itertools.product((False, True), repeat=3)
    for (shape, groups), (last, per_sample, own_var) in itertools.product(SHAPES, variants):
        inputs = arguments(kind, shape, dtype, per_sample, own_var)
        exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
        inputs[0] = inputs[0].detach()
        if last:
            inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
        inputs[0].requires_grad_()
        dy = random(*shape, seed=9, dtype=dtype)
        expected = formula(kind, groups, *exact)
        expected.backward(dy.double())
        with backend():
            y, _, _ = forward(*inputs, groups, EPS, kind)
            y.backward(dy)
        if last:
            assert y.is_contiguous(memory_format=torch.channels_last)
            assert inputs[0].grad.is_contiguous(memory_format=torch.channels_last)
        pairs = [(y, expected)] + [(a.grad, b.grad) for a, b in zip(inputs, exact) if a is not None]
        for ours, theirs in pairs:
            assert ours.dtype == dtype
            # A sum of thousands loses some digits in float32; a result in 16 bits is rounded once.
            ulps = 0.75 if dtype.itemsize == 2 else 60
            bound = ulps * torch.finfo(dtype).eps * max(theirs.abs().max().item(), 1.0)
            torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=bound)


BLOCKS = [  # with groups: on a CPU the last block smaller, groups joined, samples far apart
    ((3, 44, 21, 23), 11),
    ((2, 96, 13, 17), 32),
    ((40, 96, 7, 7), 32),
    ((9, 130, 4, 4), 5),
]


@pytest.mark.skipif(not NATIVE, reason="the CPU kernels were not built")
@pytest.mark.parametrize("threads", [1, 2])
@each_kind
def test_blocks_against_the_formula(kind, threads):
    """Maps that are worked on in several blocks, where threads take a block each."""
    torch.set_num_threads(threads)
    for (shape, groups), own_var in itertools.product(BLOCKS, (False, True)):
        inputs = arguments(kind, shape, per_sample=True, own_var=own_var)
        exact = [None if t is None else t.detach().requires_grad_() for t in inputs]
        dy = random(*shape, seed=9)
        y, expected = forward(*inputs, groups, EPS, kind)[0], formula(kind, groups, *exact)
        y.backward(dy)
        expected.backward(dy)
        pairs = [(y, expected)] + [(a.grad, b.grad) for a, b in zip(inputs, exact) if a is not None]
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11 * theirs.abs().max().item())


@each_backend
@pytest.mark.parametrize("size", [(4, 4), (8, 8), (8, 16), (32, 64), (100, 160)])
def test_variance_beside_outliers(size, backend):
    """Where the values that a kernel may look at first are far from all others."""
    x = 1e-3 * random(2, 32, *size)
    values = size[0] * size[1]
    for k in range(4):
        x.view(2, 32, -1)[:, :, k * (values - 1) // 3] += 1000
    x = x.float()
    with backend():
        _, (_, s), _ = forward(x, None, torch.ones(32), None, None, 1, 0.0, "B0")
    expected = x.double().var((2, 3), unbiased=False)
    torch.testing.assert_close(s.double().square(), expected, rtol=1e-5, atol=0)


@each_backend
@each_kind
def test_single_values(kind, backend):
    """On 1x1 maps, where deviations are 0 and gradients cancel."""
    inputs = arguments(kind, (4, 16, 1, 1), torch.float32)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    with backend():
        forward(*inputs, 16, EPS, kind)[0].backward(random(4, 16, 1, 1, dtype=torch.float32))
    formula(kind, 16, *exact).backward(random(4, 16, 1, 1, dtype=torch.float32).double())
    for ours, theirs in zip(inputs, exact):
        if ours is not None:
            bound = 2e-4 * theirs.grad.abs().max().item()
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=bound)


@each_backend
@pytest.mark.parametrize("own_var", [True, False])
@each_kind
def test_gradcheck(kind, own_var, backend):
    inputs = arguments(kind, (2, 4, 2, 3), own_var=own_var)
    wanted = [t for t in inputs if t is not None]

    def function(*given):
        given = iter(given)
        return forward(*(None if t is None else next(given) for t in inputs), 2, EPS, kind)[0]

    with backend():
        assert torch.autograd.gradcheck(function, wanted)
        assert torch.autograd.gradgradcheck(function, wanted, fast_mode=True)


@pytest.mark.parametrize("per_sample", [False, True])
@each_kind
def test_opcheck(kind, per_sample):
    for own_var in (True, False):
        inputs = arguments(kind, (2, 8, 3, 5), torch.float32, per_sample, own_var)
        torch.library.opcheck(forward.default, (*inputs, 4, EPS, kind))
        inputs = [None if t is None else t.detach() for t in inputs]
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
        y, *stats = forward(*inputs, 4, EPS, kind)
        torch.library.opcheck(backward.default, (y, *inputs, *stats, 4, EPS, kind))


PARTS = {
    "channels": lambda x: x[:, 4:12],
    "every other channel": lambda x: x[:, ::2],
    "one channel": lambda x: x[:, :1],
    "positions": lambda x: x[:, :8, 1:, 2:4],
    "one position": lambda x: x[:, :8, :1, :1],
    "samples": lambda x: x[::2, :8],
    "one sample for all": lambda x: x[:1, :8].expand(3, 8, 5, 4),
    "one channel for all": lambda x: x[:, :1].expand(3, 8, 5, 4),
    "one position for all": lambda x: x[:, :8, :1, :1].expand(3, 8, 5, 4),
    "transposed": lambda x: x[:, :8].transpose(2, 3),
}


@each_backend
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_opcheck_on_parts_of_tensors(part, last, backend):
    """A compiler relies on the strides that the fake kernels promise."""
    layout = torch.channels_last if last else torch.contiguous_format
    x = PARTS[part](random(3, 16, 5, 4, dtype=torch.float32).contiguous(memory_format=layout))
    for kind, per_sample in (("S0", False), ("B0", True), ("B1", False)):
        rest = arguments(kind, x.shape, torch.float32, per_sample)[1:]
        inputs = [x] + [None if t is None else t.detach() for t in rest]
        options = (1, EPS, kind)
        tests = ("test_schema", "test_faketensor")
        with backend():
            torch.library.opcheck(forward.default, (*inputs, *options), test_utils=tests)
            y, *stats = forward(*inputs, *options)
            for dy in (y, x, torch.ones(1, 1, 1, 1).expand(x.shape)):
                given = (dy, *inputs, *stats, *options)
                torch.library.opcheck(backward.default, given, test_utils=tests)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
# The key of a compiled graph in the cache has nothing of the fake kernels.
@torch.compiler.config.patch(force_disable_caches=True)
def test_inductor_on_half_of_the_channels(random_layer):
    conv = torch.nn.Conv2d(4, 16, 3).to(memory_format=torch.channels_last)
    layer = random_layer("EvoNormS0", 8, num_groups=4)
    x = random(2, 4, 7, 6, dtype=torch.float32).contiguous(memory_format=torch.channels_last)

    def function(x):
        return layer(conv(x).chunk(2, 1)[0])

    torch.compiler.reset()
    results = []
    for call in (function, torch.compile(function, fullgraph=True)):
        leaf = x.clone().requires_grad_()
        y = call(leaf)
        y.square().sum().backward()
        results.append((y, leaf.grad))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@each_kind
def test_compile_and_export(kind, training, random_layer):
    layers = [random_layer(f"EvoNorm{kind}", 8, num_groups=4).train(training) for _ in range(2)]
    x = random(2, 8, 5, 3, dtype=torch.float32)
    if not training:
        program = torch.export.export(layers[0], (x,))
        calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert forward.default in calls
        torch.testing.assert_close(program.module()(x), layers[0](x))
    torch.compiler.reset()
    compiled = torch.compile(layers[1], fullgraph=True, backend="aot_eager")
    results = []
    for layer in (layers[0], compiled):
        a = x.clone().requires_grad_()
        layer(a).square().sum().backward()
        results.append(a.grad)
    torch.testing.assert_close(*results)
    for ours, theirs in zip(layers[1].parameters(), layers[0].parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for ours, theirs in zip(layers[1].buffers(), layers[0].buffers()):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("last", [False, True])
@each_kind
def test_deterministic(kind, last):
    """Bit for bit, however many threads there are: one group, one sample, and many groups."""
    for shape, groups in (((1, 8, 150, 120), 1), ((4, 64, 20, 9), 32)):
        results = []
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            inputs = arguments(kind, shape, torch.float32)
            x = inputs[0].detach()
            inputs[0] = x.contiguous(memory_format=torch.channels_last) if last else x
            inputs[0].requires_grad_()
            y, stats, batch_stats = forward(*inputs, groups, EPS, kind)
            y.sin().sum().backward()
            grads = [t.grad for t in inputs if t is not None]
            results.append([y, stats, batch_stats, *grads])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@each_backend
@pytest.mark.parametrize("offset", [0, 1e3, -1e4])
def test_variance_of_an_offset_input(offset, backend):
    check_variance((random(2, 8, 130, 140) + offset).float(), backend)


@pytest.mark.skipif(not NATIVE, reason="the CPU kernels were not built")
def test_variance_of_a_padded_offset_input():
    """Where the first values, from which a running sum could start, are far from the mean."""
    x = random(2, 8, 130, 140) + 1e3
    x[:, :, 0] = 0
    check_variance(x.float(), contextlib.nullcontext)


def check_variance(x, backend):
    exact = x.double()
    for kind, groups in (("S0", 2), ("B0", 8)):
        expected = exact.reshape(2, groups, -1).var(2, unbiased=False)
        for layout in (torch.contiguous_format, torch.channels_last):
            with backend():
                inputs = (x.contiguous(memory_format=layout), *4 * [None])
                _, stats, batch = forward(*inputs, groups, 0.0, kind)
            error = (stats[1].double().square() - expected) / expected
            assert error.abs().max() < 1e-5
            if kind == "B0":
                expected_batch = exact.var((0, 2, 3), unbiased=False)
                assert ((batch[1] - expected_batch) / expected_batch).abs().max() < 1e-5


def nans(outcome, inputs):
    """Where the output and the gradients of the inputs are NaN."""
    outcome.backward(torch.ones_like(outcome))
    return [outcome.isnan()] + [t.grad.isnan() for t in inputs if t is not None]


@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "what, value, own_var",
    [
        ("x", float("nan"), True),
        ("x", float("nan"), False),
        ("v", float("nan"), True),
        ("var", float("nan"), False),
        ("var", -1.0, False),
        ("weight", float("nan"), True),
        ("bias", float("nan"), True),
    ],
)
@each_kind
def test_nan_shows_wherever_the_formula_has_it(kind, what, value, own_var, dtype, backend):
    """In the output and in all gradients: with a wrong value of one sample or one channel."""
    at = ("x", "v", "var", "weight", "bias").index(what)
    for last in (False, True):
        inputs = arguments(kind, (3, 5, 3, 7), dtype, own_var=own_var)
        if inputs[at] is None:
            continue
        inputs = [None if t is None else t.detach() for t in inputs]
        inputs[at][1] = value
        if last:
            inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
        exact = [None if t is None else t.double().requires_grad_() for t in inputs]
        expected = nans(formula(kind, 5, *exact), exact)
        assert expected[0].any()
        inputs = [None if t is None else t.requires_grad_() for t in inputs]
        with backend():
            found = nans(forward(*inputs, 5, EPS, kind)[0], inputs)
        assert all(map(torch.equal, found, expected))


@each_backend
@each_kind
def test_nan_of_any_bits_shows(kind, backend):
    """A float32 that has all its bits set, beside a bfloat16 input."""
    weight = torch.full((4,), -1, dtype=torch.int32).view(torch.float32)
    with backend():
        y = forward(random(2, 4, 3, 3).bfloat16(), None, None, weight, None, 2, EPS, kind)[0]
    assert y.isnan().all()


@each_backend
@each_kind
def test_empty(kind, backend):
    with backend():
        inputs = arguments(kind, (0, 8, 3, 2), torch.float32)
        y, stats, batch_stats = forward(*inputs, 4, EPS, kind)
        y.sum().backward()
    assert y.shape == inputs[0].grad.shape == (0, 8, 3, 2)
    assert torch.equal(batch_stats, torch.zeros_like(batch_stats))
    assert all(torch.equal(t.grad, torch.zeros_like(t)) for t in inputs[1:] if t is not None)


@each_kind
def test_saves_the_input_and_statistics(kind):
    inputs = arguments(kind, (4, 64, 16, 16), torch.bfloat16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        forward(*inputs, 32, EPS, kind)
    large = [t for t in saved if t.numel() >= inputs[0].numel()]
    assert [t.data_ptr() for t in large] == [inputs[0].data_ptr()]
    groups = 32 if kind[0] == "S" else 64
    assert sum(t.numel() for t in saved) - inputs[0].numel() <= 2 * 4 * groups + 2 * 64 + 4 * 64


@pytest.mark.skipif(not NATIVE, reason="the CPU kernels were not built")
@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"groups": 3}, "3 groups don't divide 8 channels"),
        ({"kind": "S9"}, "kind should be one of"),
        ({"weight": torch.ones(7)}, "weight should have the shape"),
        ({"weight": torch.ones(5, 8)}, "weight should have the shape"),
        ({"x": torch.ones(2, 8, 3)}, "x should be"),
        ({"x": torch.ones(2, 8, 3, 3, dtype=torch.int32)}, "x should be floating-point"),
    ],
)
def test_refuses(wrong, message):
    right = {"x": torch.ones(2, 8, 3, 3), "v": None, "var": None, "weight": None, "bias": None}
    with pytest.raises((RuntimeError, TypeError), match=message):
        forward(**{**right, "groups": 4, "eps": EPS, "kind": "S0", **wrong})


SCRIPT = """
import torch
from evonorm import build_norm_act, ops
from evonorm.ops import reference
layer = build_norm_act("EvoNormS0", 16)
x = torch.randn(2, 16, 9, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
inputs = [x, layer.v, layer.weight, layer.bias]

def derivatives(y):
    first = torch.autograd.grad(y.square().sum(), inputs, retain_graph=True)
    again = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in again), inputs)
    return [y, *first, *again, *second]

formula = reference.formula(x, layer.v, None, layer.weight, layer.bias, 16, 1e-5, "S0")
for ours, expected in zip(derivatives(layer(x)), derivatives(formula)):
    assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-4), (ours - expected).abs().max()
print(ops.backends()["cpu"])
"""


@pytest.mark.parametrize(
    "variable, value, printed",
    [("EVONORM_REFERENCE", "1", "reference")]
    + [("ATEN_CPU_CAPABILITY", name, f"native, {name}") for name in ("default", "avx2") if NATIVE],
)
def test_other_backends(variable, value, printed):
    """A fresh process without the kernels, and with those for older machines."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, variable: value, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().lower() == printed


class Calls(TorchDispatchMode):
    """The operators that are called, by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@each_kind
def test_layers_call_it_and_little_else(kind):
    layer, x = build_norm_act(f"EvoNorm{kind}", 8), random(2, 8, 3, 3).float().requires_grad_()
    with Calls() as calls:
        layer(x)
        layer.eval()(x)
    assert calls.names.count("evonorm.forward.default") == 2
    assert not {n.split(".")[1] for n in calls.names} & {"sigmoid", "maximum", "sqrt", "div"}
