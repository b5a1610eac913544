"""convert() against forward hooks, published counts, and the numbers of the unconverted model."""

from __future__ import annotations

import copy
import io

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet

from evonorm import NormAct, convert
from evonorm.convert import NORMS, Swap

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU)
ARCHITECTURES = [
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2", "mobilenet_v2"),
    *(f"mnasnet{width}" for width in ("0_5", "0_75", "1_0", "1_3")),
    *(f"efficientnet_b{size}" for size in range(8)),
    *(f"efficientnet_v2_{size}" for size in "sml"),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Faster for small inputs, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return getattr(models, name)()


def watch(model: nn.Module, norms: tuple[type, ...]) -> tuple[set[str], int]:
    """The norms whose very output an activation module takes, and the calls of such modules."""
    outputs, followed, calls, handles = {}, set(), [], []

    def after_norm(path):
        def hook(module, args, output):
            # Held, so that its id is not used again; its version tells of in-place changes.
            outputs[id(output)] = (path, output, output._version)

        return hook

    def before_activation(module, args):
        calls.append(module)
        path, output, version = outputs.get(id(args[0]), (None, None, None))
        if path and output._version == version:
            followed.add(path)

    for path, module in model.named_modules():
        if isinstance(module, norms):
            handles.append(module.register_forward_hook(after_norm(path)))
        elif isinstance(module, ACTIVATIONS):
            handles.append(module.register_forward_pre_hook(before_activation))
    device = next(model.parameters()).device
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 64, 64, device=device))
    for handle in handles:
        handle.remove()
    return followed, len(calls)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_swaps_what_hooks_see(name):
    model = on_meta(name)
    norms = [path for path, module in model.named_modules() if isinstance(module, NORMS)]
    followed, calls = watch(model, NORMS)
    keys = [key for key in model.state_dict() if key.endswith("weight")]

    swaps = convert(model, "EvoNormS0")

    assert [swap.module for swap in swaps] == norms
    assert {swap.module for swap in swaps if swap.activation} == followed
    for swap in swaps:
        layer = model.get_submodule(swap.module)
        assert (layer.norm_act, layer.activation) == ("EvoNormS0", swap.activation)
        assert swap.replaced.startswith("BatchNorm2d + " if swap.activation else "BatchNorm2d")
    assert not any(isinstance(module, NORMS) for module in model.modules())
    assert watch(model, (NormAct,)) == (set(), calls - len(followed))
    assert sorted(key for key in model.state_dict() if key.endswith("weight")) == sorted(keys)


@pytest.mark.parametrize(
    ("name", "activation", "pairs", "lone", "left"),
    [
        # Stem; one in each of 8 blocks, two in each of 16. A ReLU stays after each sum.
        ("resnet18", "ReLU", 1 + 8, 8 + 3, 8),
        ("resnet50", "ReLU", 1 + 2 * 16, 16 + 4, 16),
        # Stem, first block without expansion, 16 blocks with, head; one linear norm a block.
        ("mobilenet_v2", "ReLU6", 1 + 1 + 2 * 16 + 1, 17, 0),
        # Stem, separable convolution, 3 + 3 + 3 + 2 + 4 + 1 blocks, head.
        ("mnasnet1_0", "ReLU", 1 + 1 + 2 * 16 + 1, 17, 0),
        # As MobileNetV2 with 15 blocks with expansion; a SiLU stays in the 16 squeeze-excitations.
        ("efficientnet_b0", "SiLU", 1 + 1 + 2 * 15 + 1, 16, 16),
    ],
)
def test_published_counts(name, activation, pairs, lone, left):
    model = on_meta(name)
    replaced = [swap.replaced for swap in convert(model, "EvoNormB0")]
    assert replaced.count(f"BatchNorm2d + {activation}") == pairs
    assert replaced.count("BatchNorm2d") == lone == len(replaced) - pairs
    assert watch(model, (NormAct,)) == (set(), left)


def same_weights(model: nn.Module, name: str, **options) -> nn.Module:
    """A converted copy of the model with the model's weights."""
    converted = copy.deepcopy(model)
    convert(converted, name, **options)
    missing, unexpected = converted.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all(key.endswith("num_batches_tracked") for key in unexpected)
    return converted


def assert_same_model(model: nn.Module, converted: nn.Module, atol: float = 0.0) -> None:
    """Same outputs, gradients and running statistics: a step in training, then evaluation."""
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    for mode in (True, False):
        x = torch.randn(2, 3, 64, 64, generator=generator, dtype=dtype)
        outputs = []
        for m in (model, converted):
            torch.manual_seed(2)  # of dropout and stochastic depth
            m.zero_grad()
            outputs.append(m.train(mode)(x))
            outputs[-1].square().mean().backward()
        torch.testing.assert_close(*outputs, rtol=0, atol=atol)
        ours = dict(converted.named_parameters())
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(ours[key].grad, parameter.grad, rtol=0, atol=atol)
    ours = converted.state_dict()
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(ours[key], value, rtol=0, atol=atol)


def jitter(model: nn.Module) -> nn.Module:
    """Norm weights other than 1 and 0, so that a swapped or lost one shows."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, NORMS):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def relu6_to_relu(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        for key, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, key, nn.ReLU(inplace=True))
    return model


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (models.resnet18, {}),
        (models.resnet50, {}),
        (models.mnasnet0_5, {"momentum": 1 - 0.9997}),
        (lambda: relu6_to_relu(models.mobilenet_v2()), {}),
    ],
    ids=["resnet18", "resnet50", "mnasnet", "mobilenet_v2"],
)
def test_bn_relu_is_bit_identical(build, options):
    model = jitter(build())
    assert_same_model(model, same_weights(model, "BN-ReLU", **options))


def test_gn_relu_is_bit_identical():
    model = jitter(models.resnet18(norm_layer=lambda channels: nn.GroupNorm(16, channels)))
    converted = same_weights(model, "GN-ReLU", num_groups=16)
    assert_same_model(model, converted)
    assert convert(model, "EvoNormS0")[:2] == [
        Swap("bn1", "GroupNorm + ReLU", True),
        Swap("layer1.0.bn1", "GroupNorm + ReLU", True),
    ]


def test_bn_swish_is_efficientnet():
    model = jitter(models.efficientnet_b0()).double()
    assert_same_model(model, same_weights(model, "BN-Swish-1"), atol=1e-6)


# Models of one's own. All take (N, 3, H, W).


class ConvNorm(nn.Sequential):
    def __init__(self, norm: nn.Module | None = None, channels: int = 3) -> None:
        super().__init__(nn.Conv2d(3, channels, 3, padding=1), norm or nn.BatchNorm2d(channels))


class Functional(nn.Module):
    """Calls its activation as `act` says after two norms, and again after the sum."""

    def __init__(self, act) -> None:
        super().__init__()
        self.one, self.two, self.act = ConvNorm(), ConvNorm(), act
        self.scale = nn.Parameter(torch.full((3, 1, 1), 0.5))

    def forward(self, x):
        y = self.act(self.two(self.act(self.one(x))))
        return self.act(x + y * self.scale)


class Nested(nn.Module):
    """A block that calls an activation inside one that does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = Functional(torch.relu), ConvNorm()

    def forward(self, x):
        return self.inner(F.relu(self.outer(x)))


class Aliased(nn.Module):
    """One activation module under two names, called by the second."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first = ConvNorm(), nn.ReLU()
        self.second = self.first

    def forward(self, x):
        return self.second(self.body(x))


class BehindIdentity(nn.Module):
    """A placeholder between norm and activation, as in timm's residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.act = ConvNorm(), nn.Identity(), nn.ReLU()

    def forward(self, x):
        return self.act(x + self.act(self.drop(self.body(x))))


class Remembers(nn.Module):
    """Leaves its features in an attribute, which a trace would do too."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.features = Functional(torch.relu), None

    def forward(self, x):
        self.features = self.body(x)
        return self.features + torch.ones(3, 1, 1)


class Optionals(nn.Module):
    """A block with optional arguments, as timm's dla34 has."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.act = ConvNorm(), nn.ReLU()

    def forward(self, x, shortcut=None, double=False, *, before=None, unused=None):
        if before is not None:
            x = x + before
        if shortcut is None:
            shortcut = x
        y = self.act(self.body(x))
        return self.act((2 * y if double else y) + shortcut)


class WithOptionals(nn.Module):
    """Gives each of its blocks other arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Optionals() for _ in range(6))

    def forward(self, x):
        one, two, three, four, five, six = self.blocks
        y = two(one(x), x)
        y = three(y, shortcut=x.sin(), double=True)
        y = four(y, None, True, unused=None)
        return six(five(y, double=False, before=x), shortcut=None, before=None)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(Functional(F.relu), Functional(F.relu)),
        lambda: nn.Sequential(Functional(torch.relu)),
        lambda: nn.Sequential(Functional(lambda x: x.relu())),
        lambda: nn.Sequential(Functional(nn.ReLU())),
        lambda: nn.Sequential(Nested(), nn.Conv2d(3, 3, 1)),
        Aliased,
        lambda: nn.Sequential(BehindIdentity()),
        Remembers,
        WithOptionals,
        lambda: timm.create_model("dla34"),
    ],
    ids="F.relu torch.relu x.relu nn.ReLU nested aliased identity remembers optional dla34".split(),
)
def test_other_ways_to_call_an_activation(build):
    torch.manual_seed(0)
    model = jitter(build())
    assert_same_model(model, same_weights(model, "BN-ReLU"))
    relus = count_relus(model)
    pairs = [swap for swap in convert(model, "EvoNormS0") if swap.activation]
    assert count_relus(model) == relus - len(pairs) and pairs


def count_relus(model: nn.Module) -> int:
    """How often a forward pass calls ReLU's operator, by whatever name Python does."""

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            self.calls += operator.overloadpacket in (torch.ops.aten.relu, torch.ops.aten.relu_)
            return operator(*args, **(kwargs or {}))

    with Count() as count, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return count.calls


def test_converts_the_rest_of_a_converted_model():
    model = nn.Sequential(Nested(), ConvNorm(), nn.ReLU())
    norm = model[1][1]
    model[1][1] = nn.Identity()
    assert len(convert(model, "EvoNormS0")) == 3
    model[1][1] = norm
    assert convert(model, "GN-ReLU") == [Swap("1.1", "BatchNorm2d + ReLU", True)]


class Both(nn.Module):
    """A norm whose output goes to an activation and to a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.body = ConvNorm()

    def forward(self, x):
        y = self.body(x)
        return y + torch.relu(y)


class Discarded(Both):
    """An in-place activation whose result is not the name used afterwards."""

    def forward(self, x):
        y = self.body(x)
        F.relu_(y)
        return F.conv2d(y, self.body[0].weight)


class Unknown(Both):
    def forward(self, x):
        return torch.sin(self.body(x))


class HandMade(Both):
    """Hardswish written out."""

    def forward(self, x):
        y = self.body(x)
        return y * F.relu6(y + 3) / 6


class DataDependent(Both):
    def forward(self, x):
        return self.body(x) if x.sum() > 0 else torch.relu(self.body(x))


class Raises(Both):
    def forward(self, x):
        raise RuntimeError("no forward\nin two lines")


class Twice(Both):
    def forward(self, x):
        return self.body(torch.relu(self.body(x)))


class Unused(Both):
    def forward(self, x):
        return self.body[0](x)


class TrainsOtherwise(Both):
    def forward(self, x):
        y = self.body(x)
        return torch.relu(y) if self.training else y


class AtTheRoot(Both):
    def forward(self, x):
        return torch.relu(self.body(x))


class Shared(nn.Module):
    """One module of its own that applies the activation after the norm and after the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvNorm())
        self.act = HasFunction()

    def forward(self, x):
        return self.act(x + self.act(self.body(x)))


class HasFunction(nn.Module):
    def forward(self, x):
        return torch.relu(x)


class DropsInTraining(Both):
    """Rewritten as code, its dropout would stay as it was when traced."""

    def forward(self, x):
        return F.dropout(torch.relu(self.body(x)), 0.5, self.training)


class MakesTensors(Both):
    def forward(self, x):
        return torch.relu(self.body(x)) + torch.ones(3, 1, 1)


class OtherwiseWithFactor(Both):
    """Does one thing by its default argument, another with a symbol in its place."""

    def forward(self, x, factor=1):
        y = torch.relu(self.body(x))
        return y if isinstance(factor, int) else y * factor


class SpareParameter(AtTheRoot):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.zeros(1))


class NormWithActivation(nn.BatchNorm2d):
    def forward(self, x):
        return torch.relu(super().forward(x))


UNSURE = "can't tell whether an activation follows this BatchNorm2d, as "
REFUSED = {
    "both": (Both, f"body.1: {UNSURE}relu takes its output, but not alone or not as it is"),
    "discarded": (Discarded, f"body.1: {UNSURE}relu_ takes its output, but not alone"),
    "unknown function": (Unknown, f"body.1: {UNSURE}nothing is known of sin"),
    "hand-made": (HandMade, f"body.1: {UNSURE}nothing is known of add"),
    "data-dependent": (DataDependent, "DataDependent: can't tell .* torch.fx can't trace it: "),
    "data-dependent block": (lambda: nn.Sequential(DataDependent()), "0: .* can't trace it: "),
    "raises": (lambda: nn.Sequential(Raises()), "0: .* torch.fx can't trace it: no forward$"),
    "twice": (Twice, f"body.1: {UNSURE}it is called 2 times"),
    "unused": (Unused, f"body.1: {UNSURE}it is called 0 times"),
    "trains otherwise": (TrainsOtherwise, "TrainsOtherwise: .* does not do the same in training"),
    "gate": (lambda: nn.Sequential(ConvNorm(), nn.Sigmoid()), f"0.1: {UNSURE}.* of Sigmoid"),
    "behind a pool": (
        lambda: nn.Sequential(ConvNorm(), nn.MaxPool2d(2), nn.Dropout(), nn.ReLU()),
        f"0.1: {UNSURE}ReLU takes its output",
    ),
    "subclass": (lambda: ConvNorm(NormWithActivation(3)), "1: .*NormWithActivation, as a class"),
    "at the root": (AtTheRoot, "body.1: can't take out the relu after it, which AtTheRoot calls"),
    "shared": (lambda: nn.Sequential(Shared()), "0.body.0.1: can't take out .* which 0.act calls"),
    "drops": (
        lambda: nn.Sequential(ConvNorm(), nn.ReLU(), DropsInTraining()),
        "2: .* does not do the same in training",
    ),
    "makes tensors": (lambda: nn.Sequential(MakesTensors()), "0.body.1: can't take out the relu"),
    "factor": (lambda: nn.Sequential(OtherwiseWithFactor()), "0.body.1: can't take out the relu"),
    "spare": (lambda: nn.Sequential(SpareParameter()), "0.body.1: can't take out the relu"),
    "no norm": (lambda: nn.Conv2d(3, 3, 1), "found none of BatchNorm2d, .* in Conv2d"),
    "a norm": (lambda: nn.BatchNorm2d(3), "BatchNorm2d: can't tell"),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses_and_leaves_the_model(build, message):
    check_untouched(build(), f"^{message}", "EvoNormS0")


def check_untouched(model: nn.Module, message: str, name: str, error=ValueError, **options) -> None:
    def state(module):
        attributes = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        return module, attributes, list(module._modules.items()), list(module._parameters)

    next(model.children(), model).eval()  # modes differ, to be kept
    before = [state(module) for module in model.modules()]
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=message) as caught:
        convert(model, name, **options)
    assert "\n" not in str(caught.value)
    assert [state(module) for module in model.modules()] == before
    torch.testing.assert_close(dict(model.state_dict()), tensors, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("EvoNormS", {}, ValueError, "unknown norm-act 'EvoNormS'"),
        ("EvoNormS0", {"num_groups": 0}, ValueError, "num_groups=0"),
        ("EvoNormS0", {"group": 8}, TypeError, "group"),
    ],
)
def test_wrong_name_or_option_leaves_the_model(name, options, error, message):
    check_untouched(nn.Sequential(Nested()), message, name, error, **options)


def test_keeps_device_dtype_mode_and_synchronization():
    model = nn.Sequential(
        ConvNorm(nn.BatchNorm2d(3).double()),
        ConvNorm(nn.SyncBatchNorm(3)).eval(),
        ConvNorm(nn.GroupNorm(3, 3, affine=False)),
        ConvNorm(nn.BatchNorm2d(3, device="meta")),
    )
    convert(model, "EvoNormB0", momentum=0.3)
    layers = [block[1] for block in model]
    assert [layer.weight.dtype for layer in layers] == [torch.float64] + 3 * [torch.float32]
    assert [layer.training for layer in layers] == [True, False, True, True]
    assert [layer.sync for layer in layers] == [False, True, False, False]
    assert [layer.weight.device.type for layer in layers] == ["cpu", "cpu", "cpu", "meta"]
    assert {layer.momentum for layer in layers} == {0.3}

    asked = ConvNorm(nn.SyncBatchNorm(3))
    convert(asked, "EvoNormB0", sync=False, dtype=torch.float64)
    assert (asked[1].sync, asked[1].weight.dtype) == (False, torch.float64)


def small_resnet(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    convert(model, name)
    return model


@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0"])
def test_converted_model_trains_copies_and_saves(name):
    model = small_resnet(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(4, 3, 64, 64)
    before = [p.detach().clone() for p in model.parameters()]
    model(x).logsumexp(1).sum().backward()
    optimizer.step()
    after = list(model.parameters())
    assert all(p.isfinite().all() and not p.equal(q) for p, q in zip(after, before))

    model.eval()
    expected = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = small_resnet(name).eval()
    loaded.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False), loaded):
        assert not any(module.training for module in other.modules())
        assert all(module.training for module in copy.deepcopy(other).train().modules())
        assert other.state_dict().keys() == model.state_dict().keys()
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    last = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), expected)


def test_converted_model_scripts():
    model = small_resnet("EvoNormS0").eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
