"""The Triton kernels: in Triton's interpreter, on a GPU where there is one, and as compiled code.

The interpreter has to be chosen before Triton is imported, so `test_in_the_interpreter` runs this
file again in a process of its own, where the kernels take the place of those for the CPU.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch

from evonorm import build_norm_act, formula_of, ops
from evonorm.ops.reference import KINDS
from evonorm.statistics import batch_moments

pytest.importorskip("triton")
from evonorm.ops import cuda, cuda_plan  # noqa: E402
from evonorm_repro.benchmark.counts import disassemble  # noqa: E402
from evonorm_repro.benchmark.no_gpu import no_gpu  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and ops.backends()["cuda"].startswith("triton")
DEVICE = "cpu" if INTERPRETED else "cuda"
runs = pytest.mark.skipif(not INTERPRETED and not GPU, reason="in the interpreter or on a GPU")
on_gpu = pytest.mark.skipif(INTERPRETED or not GPU, reason="on a GPU")
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="not in the interpreter")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_way = pytest.mark.parametrize("way", ["split", "whole", "at once"])
one_of_each_series = pytest.mark.parametrize("kind", ["S0", "B0"])
EPS = 1e-5

forward = torch.ops.evonorm.forward
backward = torch.ops.evonorm.backward


@pytest.fixture(autouse=True)
def instead_of_those_for_the_cpu():
    if not INTERPRETED:
        yield
        return
    torch.set_num_threads(1)
    library = torch.library.Library("evonorm", "IMPL")
    for name in ("forward", "backward"):
        library.impl(name, getattr(cuda, name), "CPU", allow_override=True)
    yield
    library._destroy()


@pytest.fixture
def schedule(monkeypatch):
    """schedule(way): whether groups are divided among programs, however small they are, or are
    whole, or channels are with all their samples in one tile.
    """

    def choose(way):
        split = way == "split"
        monkeypatch.setattr(cuda_plan, "ON_CHIP", 0 if split else 16384)
        monkeypatch.setattr(cuda_plan, "AT_ONCE", 8192 if way == "at once" else 0)
        monkeypatch.setattr(cuda_plan, "FEW", 1)
        monkeypatch.setattr(cuda_plan, "ADDS_UP", 4 if split else 1024)
        monkeypatch.setattr(cuda_plan, "TILE", 128 if split else 4096)
        monkeypatch.setattr(cuda_plan, "WARPS", 6 if split else 2)
        monkeypatch.setattr(cuda_plan, "_calls", {})

    return choose


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def arguments(kind, shape, dtype=torch.float32, last=False, per_sample=False, own_var=True):
    """x, v, var, weight, bias, each requiring its gradient, or None."""
    n, c = shape[:2]
    affine = (n, c) if per_sample else (c,)
    layout = torch.channels_last if last else torch.contiguous_format
    values = (
        (2 * random(*shape) + 0.5).contiguous(memory_format=layout),
        random(c, seed=1) if kind in ("B0", "S0") else None,
        None if own_var or kind[0] == "S" else random(c, seed=2).abs() + 0.5,
        random(*affine, seed=3),
        random(*affine, seed=4),
    )
    return [None if t is None else t.to(DEVICE, dtype).requires_grad_() for t in values]


def formula(kind, groups, x, v, var, weight, bias):
    """The formula of the kind, with the batch's variance where none is given."""
    v = torch.ones((), device=x.device) if v is None else v[:, None, None]
    if var is None:
        var = x.var((0, 2, 3), unbiased=False)
    function = formula_of(f"EvoNorm{kind}").function
    y = function(x, x, v, [var[:, None, None]], groups, EPS)
    return y * weight[..., None, None] + bias[..., None, None]


def at_the_kink(kind, x, v, var):
    """Where the maximum's arguments are so close that rounding decides which one is greater."""
    if kind[0] == "S":
        return torch.zeros_like(x, dtype=torch.bool)
    if var is None:
        var = x.var((0, 2, 3), unbiased=False)
    mean = x.mean((2, 3), keepdim=True) if kind == "B0" else 0
    s = ((x - mean).square().mean((2, 3), keepdim=True) + EPS).sqrt()
    line = {"B0": (1 if v is None else v[:, None, None]) * x + s, "B1": (x + 1) * s, "B2": s - x}
    return (line[kind] - (var[:, None, None] + EPS).sqrt()).abs() < 1e-5


def check(kind, groups, inputs, least=1.0):
    """Output and gradients against the formula in float64."""
    x, dtype = inputs[0], inputs[0].dtype
    exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    dy = random(*x.shape, seed=9, dtype=dtype).to(DEVICE)
    dy[at_the_kink(kind, *exact[:3])] = 0
    expected = formula(kind, groups, *exact)
    expected.backward(dy.double())
    y, _, _ = forward(*inputs, groups, EPS, kind)
    y.backward(dy)
    for t in (y, x.grad):
        assert t.is_contiguous() or not x.is_contiguous()
        assert t.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous()
    # A sum loses some digits in float32; a result in 16 bits is rounded once.
    ulps = 0.75 if dtype.itemsize == 2 else 60
    if INTERPRETED and dtype == torch.bfloat16:  # which the interpreter cuts off
        ulps = 1.25
    pairs = [(y, expected)] + [(a.grad, b.grad) for a, b in zip(inputs, exact) if a is not None]
    for ours, theirs in pairs:
        assert ours.dtype == dtype
        bound = ulps * torch.finfo(dtype).eps * max(theirs.abs().max().item(), least)
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=bound)


# Of each a tile has several groups, one, or a part of one; with more channels than 3, 5 or 37 and
# more positions than 25 or 99, as the tile's sides are powers of two; and an own vector width.
SHAPES = itertools.cycle(
    [
        ((2, 8, 4, 4), 4, "whole"),
        ((1, 6, 7, 7), 2, "split"),
        ((3, 5, 1, 1), 5, "whole"),
        ((1, 8, 11, 9), 1, "split"),
        ((1, 37, 2, 3), 1, "whole"),
        ((2, 4, 8, 8), 2, "split"),
        ((2, 6, 5, 5), 2, "whole"),
    ]
)
VARIANTS = [
    (kind, dtype, last, per_sample, own_var, *next(SHAPES))
    for kind in KINDS
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for last, per_sample in itertools.product((False, True), repeat=2)
    for own_var in ((True, False) if kind[0] == "B" else (True,))
]
if INTERPRETED:  # which takes a second for a variant
    VARIANTS = VARIANTS[::3]


@runs
@pytest.mark.parametrize("kind, dtype, last, per_sample, own_var, shape, groups, way", VARIANTS)
def test_against_the_formula(kind, dtype, last, per_sample, own_var, shape, groups, way, schedule):
    schedule(way)
    check(kind, groups, arguments(kind, shape, dtype, last, per_sample, own_var))


@runs
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    "shape, dtype", [((2, 8, 4, 4), torch.float32), ((5, 3, 7, 5), torch.bfloat16)]
)
@pytest.mark.parametrize("kind", ["B0", "B1", "B2"])
def test_channels_at_once(kind, shape, dtype, per_sample, schedule):
    schedule("at once")
    check(kind, 1, arguments(kind, shape, dtype, per_sample=per_sample))


@runs
@each_way
@pytest.mark.parametrize("last", [False, True])
@one_of_each_series
def test_schedules_agree(kind, last, way, schedule):
    """All on one shape that they divide differently; and twice the same, bit for bit."""
    schedule(way)
    results = []
    for _ in range(2):
        inputs = arguments(kind, (2, 6, 9, 7), last=last)
        y, stats, batch_stats = forward(*inputs, 2, EPS, kind)
        y.sin().sum().backward()
        results.append([y, stats, batch_stats] + [t.grad for t in inputs if t is not None])
    assert all(torch.equal(a, b) for a, b in zip(*results))
    with ops.reference_only():
        wide = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
        y, stats, batch_stats = forward(*wide, 2, EPS, kind)
        y.sin().sum().backward()
    expected = [y, stats, batch_stats] + [t.grad for t in wide if t is not None]
    for ours, theirs in zip(results[0], expected):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


@runs
@pytest.mark.parametrize("offset", [1e3, -1e4])
@each_way
@pytest.mark.parametrize("last", [False, True])
def test_variance_of_an_offset_input(last, way, offset, schedule):
    """Also where samples differ, and where the first values, zeros, are far from the mean."""
    schedule(way)
    x = random(3, 4, 12, 16) + torch.arange(3)[:, None, None, None] + offset
    x[1, :, 0] = 0
    x = x.float().to(DEVICE)
    for kind, groups in (("S0", 2), ("B0", 4)):
        exact = x.double()
        layout = torch.channels_last if last else torch.contiguous_format
        inputs = (x.contiguous(memory_format=layout), *4 * [None])
        _, stats, batch = forward(*inputs, groups, 0.0, kind)
        expected = exact.reshape(3, groups, -1).var(2, unbiased=False)
        assert ((stats[1].double().square() - expected) / expected).abs().max() < 1e-5
        if kind == "B0":
            expected = exact.var((0, 2, 3), unbiased=False)
            assert ((batch[1] - expected) / expected).abs().max() < 1e-5


@runs
@each_kind
def test_empty(kind):
    for shape in ((0, 8, 3, 2), (2, 8, 0, 2)):
        inputs = arguments(kind, shape)
        y, _, batch_stats = forward(*inputs, 4, EPS, kind)
        y.sum().backward()
        assert y.shape == inputs[0].grad.shape == shape
        assert torch.equal(batch_stats, torch.zeros_like(batch_stats))
        assert all(torch.equal(t.grad, torch.zeros_like(t)) for t in inputs[1:] if t is not None)


@runs
def test_float16_stays_finite_and_nan_stays():
    x = torch.full((1, 4, 2, 2), 6e4, dtype=torch.float16, device=DEVICE)
    assert forward(x, *4 * [None], 2, EPS, "S0")[0].tolist() == x.fill_(65504).tolist()
    x[0, 0, 0, 0] = torch.nan
    for kind in KINDS:
        var = None if kind[0] == "S" else torch.ones(4, device=DEVICE)
        y, stats, _ = forward(x, None, var, None, None, 2, EPS, kind)
        assert y[:, :1].isnan().all() and not y[:, 2:].isnan().any()
        assert stats[:, 0, 0].isnan().all()


@runs
@each_way
@pytest.mark.parametrize(
    "what, value", [("x", float("nan")), ("var", -1.0), ("weight", float("nan"))]
)
@each_kind
def test_nan_shows_wherever_the_formula_has_it(kind, what, value, way, schedule):
    schedule(way)
    at = ("x", "v", "var", "weight", "bias").index(what)
    inputs = arguments(kind, (3, 4, 5, 5), own_var=what != "var")
    if inputs[at] is None:
        pytest.skip("the formula has no variance of the batch")
    with torch.no_grad():
        inputs[at][1] = value
    exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    results = []
    for y, leaves in (
        (forward(*inputs, 4, EPS, kind)[0], inputs),
        (formula(kind, 4, *exact), exact),
    ):
        y.backward(torch.ones_like(y))
        results.append([y.isnan()] + [t.grad.isnan() for t in leaves if t is not None])
    assert results[1][0].any() and all(map(torch.equal, *results))


@runs
def test_any_strides():
    """Parts of larger tensors, a transposed map, and one gamma for all samples, expanded."""
    x = random(2, 12, 5, 6).float().to(DEVICE)[:, ::2].transpose(2, 3)
    affine = random(2, 12, seed=3).float().to(DEVICE)
    weight, bias = affine[:, :6], affine[:1, 1::2].expand(2, 6)
    found = forward(x, None, None, weight, bias, 3, EPS, "S1")[0]
    expected = formula("S1", 3, x.double(), None, None, weight.double(), bias.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous()


@runs
@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"groups": 3}, "3 groups don't divide 8 channels"),
        ({"kind": "S9"}, "kind should be one of"),
        ({"weight": torch.ones(7)}, "weight should have the shape"),
        ({"v": torch.ones(2, 8)}, "v should have the shape"),
        ({"x": torch.ones(2, 8, 3)}, "x should be"),
        ({"x": torch.ones(2, 8, 3, 3, dtype=torch.int32)}, "x should be floating-point"),
    ],
)
def test_refuses(wrong, message):
    right = {"x": torch.ones(2, 8, 3, 3), "v": None, "var": None, "weight": None, "bias": None}
    given = {**right, "groups": 4, "eps": EPS, "kind": "S0", **wrong}
    given = {k: t.to(DEVICE) if isinstance(t, torch.Tensor) else t for k, t in given.items()}
    with pytest.raises((TypeError, ValueError), match=message):
        forward(**given)


@runs
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0"])
def test_compile_and_export(name, training):
    layers = [build_norm_act(name, 8, num_groups=4).to(DEVICE).train(training) for _ in range(2)]
    x = random(2, 8, 5, 3).float().to(DEVICE)
    if not training:
        program = torch.export.export(layers[0], (x,))
        assert forward.default in [n.target for n in program.graph.nodes]
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


@runs
@one_of_each_series
def test_opcheck(kind):
    inputs = arguments(kind, (2, 8, 3, 5), last=True, per_sample=True)
    torch.library.opcheck(forward.default, (*inputs, 4, EPS, kind))
    inputs = [None if t is None else t.detach() for t in inputs]
    inputs[0] = torch.cat([inputs[0], inputs[0]], 1)[:, ::2]  # channels_last, with gaps
    y, *stats = forward(*inputs, 4, EPS, kind)
    torch.library.opcheck(backward.default, (y, *inputs, *stats, 4, EPS, kind))


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True])
@each_kind
def test_shapes_of_models(kind, last, dtype):
    """As they are divided on the GPU at hand. Gradients of parameters sum up many roundings."""
    for shape in ((1, 64, 200, 336), (2, 256, 50, 84), (64, 256, 7, 7), (8, 2048, 4, 4)):
        for own_var in (True, False):
            check(kind, 32, arguments(kind, shape, dtype, last, own_var=own_var), least=4.0)


@on_gpu
@pytest.mark.parametrize("last", [False, True])
def test_more_than_2_to_the_31_values(last):
    if torch.cuda.mem_get_info()[0] < 60e9:
        pytest.skip("takes up to 60 GB")
    layout = torch.channels_last if last else torch.contiguous_format
    # The last sample, which float64 is compared with, is an eighth.
    x = torch.empty((8, 32, 2912, 2912), dtype=torch.bfloat16, device=DEVICE, memory_format=layout)
    x.normal_(generator=torch.Generator(DEVICE).manual_seed(0)).requires_grad_()
    for kind in ("S0", "B0"):
        x.grad = None
        var = None if kind == "S0" else torch.ones(32, device=DEVICE)
        forward(x, None, var, None, None, 8, EPS, kind)[0].backward(x.detach())
        end = x.detach()[7:].double().requires_grad_()
        one = torch.ones(32, device=DEVICE)
        formula(kind, 8, end, None, var, one, 0 * one).backward(end.detach())
        torch.testing.assert_close(x.grad[7:].double(), end.grad, rtol=0.01, atol=0.01)


def trained(kind, inputs, groups=4, **options):
    """Output and gradients of one call."""
    for t in inputs:
        if t is not None:
            t.grad = None
    y = forward(*inputs, groups, EPS, kind)[0]
    y.backward(torch.ones_like(y), **options)
    return [y.detach()] + [t.grad for t in inputs if t is not None]


def equal(ours, theirs):
    return all(map(torch.equal, ours, theirs))


@runs
@one_of_each_series
def test_misaligned_tensors(kind):
    """Another kernel than for tensors that begin at a multiple of 16 bytes, before and after."""
    plain = arguments(kind, (2, 8, 4, 4))
    shifted = []
    for t in plain:
        if t is not None:
            room = torch.empty(t.numel() + 1, device=DEVICE)
            room[1:] = t.detach().flatten()
            t = room[1:].view(t.shape).detach().requires_grad_()
        shifted.append(t)
    expected = trained(kind, plain)
    for _ in range(2):
        assert equal(trained(kind, shifted), expected)
        assert equal(trained(kind, plain), expected)


@runs
@each_way
@pytest.mark.parametrize("last", [False, True])
@one_of_each_series
def test_every_value_is_written(kind, last, way, schedule, monkeypatch):
    """Where new tensors hold NaN."""
    schedule(way)
    inputs = arguments(kind, (3, 6, 5, 5), last=last)
    expected = trained(kind, inputs, 2)

    def poisoned(make):
        return lambda *args, **options: make(*args, **options).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    assert equal(trained(kind, inputs, 2), expected)


@on_gpu
@each_kind
def test_cuda_graph(kind):
    inputs = arguments(kind, (2, 8, 20, 20))
    expected = trained(kind, inputs)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        trained(kind, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = trained(kind, inputs)
    for t in found:
        t.fill_(torch.nan)
    graph.replay()
    assert equal(found, expected)


@on_gpu
def test_another_stream():
    inputs = arguments("S0", (2, 32, 200, 200))
    expected = trained("S0", inputs)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)  # kernels on the usual stream would come first
        x = inputs[0].detach().clone().requires_grad_()
        found = trained("S0", [x, *inputs[1:]])
    stream.synchronize()
    assert equal(found, expected)


@on_gpu
@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0"])
def test_autocast(name):
    layer = build_norm_act(name, 32).to(DEVICE)
    conv = torch.nn.Conv2d(32, 32, 3).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = layer(conv(torch.randn(2, 32, 9, 9, device=DEVICE)))
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in [*layer.parameters(), *conv.parameters()])


@on_gpu
@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0"])
def test_compiled_with_parameters_of_any_number(name):
    """By the default backend, which takes gradients for aligned."""
    layers = [build_norm_act(name, 37, num_groups=37).to(DEVICE) for _ in range(2)]
    x = torch.randn(3, 37, 5, 5, device=DEVICE)
    torch.compiler.reset()
    for run in (layers[0], torch.compile(layers[1], fullgraph=True)):
        run(x).square().sum().backward()
    for ours, theirs in zip(layers[1].parameters(), layers[0].parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_a_batch(dtype):
    """Those of formulas without a kernel, and of several GPUs: not the CPU's sums."""
    x = (3 * random(4, 8, 9, 7) + torch.arange(8)[:, None, None]).to(DEVICE, dtype)
    x.requires_grad_()
    exact = x.detach().double().requires_grad_()
    mean, var, count = batch_moments(x)
    expected = exact.mean((0, 2, 3)), exact.var((0, 2, 3), unbiased=False)
    assert count == 4 * 9 * 7
    torch.testing.assert_close((mean.double(), var.double()), expected)
    (mean.sin() + var.sqrt()).sum().backward()
    (expected[0].sin() + expected[1].sqrt()).sum().backward()
    torch.testing.assert_close(x.grad, exact.grad.to(dtype))


@on_gpu
@each_kind
def test_memory(kind):
    """The forward pass takes its output and less than 1 % beside, the backward pass likewise."""
    inputs = arguments(kind, (2, 256, 100, 168), torch.bfloat16)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, size = torch.cuda.memory_allocated(), inputs[0].nbytes
    y = forward(*inputs, 32, EPS, kind)[0]
    assert torch.cuda.max_memory_allocated() - before < 1.01 * size
    dy = torch.ones_like(y)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(y, [t for t in inputs if t is not None], dy)
    assert torch.cuda.max_memory_allocated() - before < 1.02 * size


@on_gpu
def test_reference_only():
    inputs = arguments("S0", (2, 8, 5, 5))
    ours = forward(*inputs, 4, EPS, "S0")[0]
    with torch.profiler.profile() as profile, ops.reference_only():
        theirs = forward(*inputs, 4, EPS, "S0")[0]
    assert any("sigmoid" in event.key for event in profile.key_averages())
    torch.testing.assert_close(ours, theirs)


def launched(capability, kind, shape, groups, last, own_var, dtype=torch.bfloat16):
    """The launches of a forward and a backward pass, compiled for a GPU that is not there."""
    n, c = shape[:2]
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=layout)
    v = x.new_empty(c) if kind in ("B0", "S0") else None
    var = None if own_var else x.new_empty(c)
    inputs = (x, v, var, x.new_empty(n, c) if var is not None else x.new_empty(c), x.new_empty(c))
    with no_gpu(capability) as gpu, cuda_plan.as_if_on(132):
        gpu.launches = []
        y, *stats = cuda.forward(*inputs, groups, EPS, kind)
        cuda.backward(y, *inputs, *stats, groups, EPS, kind)
        once = [launch.name for launch in gpu.launches]
        # Again, now without Triton's look-up.
        cuda.forward(*inputs, groups, EPS, kind)
        cuda.backward(y, *inputs, *stats, groups, EPS, kind)
        assert [launch.name for launch in gpu.launches] == 2 * once
        arguments = [list(launch.arguments) for launch in gpu.launches]
        assert arguments == 2 * arguments[: len(once)]
    return gpu.launches[: len(once)]


@not_interpreted
@pytest.mark.parametrize(
    "capability, kind, shape, groups, last, own_var, names",
    [
        (80, "S0", (128, 256, 14, 14), 32, False, True, "forward backward finish"),
        (90, "B0", (512, 256, 7, 7), 32, False, True, "forward backward finish"),
        (80, "B0", (1, 256, 50, 84), 32, False, True, "forward backward finish"),
        (90, "S2", (2, 256, 100, 168), 32, True, True, "moments forward sums finish backward"),
        (
            90,
            "B0",
            (1, 64, 100, 168),
            1,
            True,
            True,
            "moments add_up combine forward sums finish add_up backward",
        ),
        (80, "B0", (1, 64, 8, 6), 1, True, True, "moments combine forward sums finish backward"),
        (90, "B1", (8, 37, 9, 9), 1, True, False, "forward backward finish"),
        # More samples with parameters of their own than a grid has rows.
        (90, "B1", (70000, 32, 2, 2), 1, False, False, "moments forward sums finish backward"),
        (90, "B0", (1, 1, 1, 1), 1, False, True, "moments combine forward sums finish backward"),
    ],
)
def test_compiles(capability, kind, shape, groups, last, own_var, names):
    """To machine code, without a GPU, for the launches that would take place on one."""
    found = launched(capability, kind, shape, groups, last, own_var)
    assert [launch.name for launch in found] == names.split()
    for launch in found:
        code = disassemble(launch.cubin)
        assert not code.stack  # nothing is spilled
        assert launch.shared < 48 * 1024 and code.registers * launch.warps * 32 <= 65536
        if shape[3] % 8 == 0 or last and shape[1] % 8 == 0:  # 8 values at a time
            loads = [o for o in code.opcodes if o.startswith("LDG")]
            assert any("128" in o for o in loads) or launch.name in ("combine", "add_up")


def run(*command, **variables):
    paths = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": paths, **variables},
        capture_output=True,
        text=True,
    )


def release(package):
    return tuple(int(part) for part in package.__version__.split("+")[0].split(".")[:3])


@not_interpreted
@pytest.mark.slow
def test_in_the_interpreter():
    triton, numpy = (pytest.importorskip(name) for name in ("triton", "numpy"))
    if release(triton) < (3, 7, 0) and release(numpy) >= (2, 4, 6):
        pytest.skip("the interpreter of this Triton fails with this NumPy")
    # Without the CPU's library the gradient is registered as it is for a GPU.
    chosen = {"TRITON_INTERPRET": "1", "EVONORM_REFERENCE": "1"}
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, **chosen)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


WITHOUT_TRITON = """
import sys
from evonorm import ops
assert "triton" not in sys.modules  # it takes a while
sys.modules["triton"] = None
print(ops.backends()["cuda"])
"""


@not_interpreted
def test_the_gradient_is_registered_in_cpp_for_gpus_too():
    if not ops._NATIVE:
        pytest.skip("the library for the CPU is not built")
    for key in ("AutogradCPU", "AutogradCUDA"):
        found = torch._C._dispatch_dump_table("evonorm::forward").splitlines()
        assert any(line.startswith(f"{key}:") and "cpu_autograd.cpp" in line for line in found)


@not_interpreted
def test_the_reference_runs_where_triton_cant_compile(monkeypatch):
    def fail():
        raise RuntimeError("Failed to find C compiler.\nMore lines")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "probe", fail)
    with pytest.warns(UserWarning, match="can't compile.*Failed to find C compiler"):
        assert ops._gpu.__wrapped__() is ops.reference


@not_interpreted
def test_where_the_reference_stays(monkeypatch):
    assert run("-c", WITHOUT_TRITON).stdout.strip() == "reference"
    monkeypatch.setenv("EVONORM_REFERENCE", "1")
    assert ops._gpu.__wrapped__() is ops.reference
    monkeypatch.delenv("EVONORM_REFERENCE")
    monkeypatch.setattr(torch.version, "cuda", None)  # as on AMD's GPUs
    assert ops._gpu.__wrapped__() is ops.reference
