"""The import of the released weights: images equal those of pytorch-pretrained-biggan."""

from __future__ import annotations

import copy

import pytest
import torch

from evonorm_gan.models import Generator
from evonorm_gan.models.port import from_port, make_trainable
from evonorm_runs.errors import UserError

port = pytest.importorskip("pytorch_pretrained_biggan.model")
configs = pytest.importorskip("pytorch_pretrained_biggan.convert_tf_to_pytorch")


@torch.no_grad()
def random_port(resolution=128, ch=8, num_classes=5, seed=0):
    """A model of the port with random weights and statistics, as if it were trained."""
    torch.manual_seed(seed)
    config = copy.copy(getattr(configs, f"BigGAN{resolution}"))
    config.channel_width, config.num_classes = ch, num_classes
    model = port.BigGAN(config)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3)
    model.generator.bn.weight.uniform_(0.5, 1.5)
    next(m for m in model.modules() if isinstance(m, port.SelfAttn)).gamma.fill_(0.7)
    # The images' range, in which an error would show: neither 0 nor saturated.
    model.generator.conv_to_rgb.bias.normal_(0, 0.1)
    for name, buffer in model.named_buffers():
        if "running_means" in name:
            buffer.normal_(0, 0.5)
        elif "running_vars" in name:
            buffer.uniform_(0.5, 2)
    for _ in range(3):  # of the power iteration: sigma is near the truth, but is not the truth
        model(torch.randn(1, config.z_dim), torch.eye(num_classes)[:1], 1.0)
    return model.eval()


@pytest.fixture(scope="module")
def theirs():
    return random_port()


def inputs():
    return torch.randn(2, 128, generator=torch.Generator().manual_seed(7)), torch.tensor([3, 1])


@torch.no_grad()
def difference(theirs, ours, truncation):
    z, y = inputs()
    expected = theirs(z, torch.eye(5)[y], truncation)
    assert expected.std() > 0.05 and (expected.abs() > 0.999).float().mean() < 0.1
    return (ours(z, y) - expected).abs().max().item()


# 0.14 is a little more than 7 * 0.02 in floating point, where the port takes row 8.
@pytest.mark.parametrize("truncation", [0.02, 0.14, 0.37, 0.4, 1.0])
def test_images_equal_the_ports(theirs, truncation):
    ours = from_port(theirs.state_dict(), truncation)
    assert difference(theirs, ours, truncation) < 1e-5


def test_images_equal_the_ports_when_training_starts_from_them(theirs):
    ours = from_port(theirs.state_dict(), 0.4)
    u = ours.last.parametrizations.weight[0]._u
    assert abs(u.norm() - 1) > 0.01
    make_trainable(ours)
    assert u.norm() == pytest.approx(1) and difference(theirs, ours, 0.4) < 1e-5


@pytest.mark.parametrize("resolution", [256, 512])
def test_images_equal_the_ports_at_other_resolutions(resolution):
    theirs = random_port(resolution, ch=4)
    ours = from_port(theirs.state_dict(), 0.5)
    assert ours.resolution == resolution and ours.ch == 4
    count = [sum(p.numel() for p in model.parameters()) for model in (theirs, ours)]
    assert count[0] - count[1] == (4 - 3) * (9 * 4 + 1)  # the channel that the port drops
    assert difference(theirs, ours, 0.5) < 1e-5


def test_statistics_of_another_truncation_give_other_images(theirs):
    assert difference(theirs, from_port(theirs.state_dict(), 0.9), 0.4) > 1e-2


def test_last_convolution_is_divided_by_the_sigma_of_all_its_channels(theirs):
    ours = from_port(theirs.state_dict(), 0.4)
    full = theirs.generator.conv_to_rgb
    with torch.no_grad():
        sigma = full.weight_u @ full.weight_orig.flatten(1) @ full.weight_v
        expected = full.weight_orig[:3] / sigma
    torch.testing.assert_close(ours.last.weight, expected)
    own_sigma = torch.linalg.matrix_norm(full.weight_orig[:3].flatten(1).detach(), 2)
    assert (ours.last.weight - full.weight_orig[:3] / own_sigma).abs().max() > 1e-3


def test_evaluation_leaves_the_imported_state(theirs):
    ours = from_port(theirs.state_dict(), 0.4)
    assert isinstance(ours, Generator) and not ours.training
    before = copy.deepcopy(ours.state_dict())
    ours(*inputs())
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def without(state, ending):
    return {key: value for key, value in state.items() if not key.endswith(ending)}


def test_wrong_input_is_one_line(theirs):
    state = theirs.state_dict()
    wrong = {
        "a truncation": (state, 0),
        "another": (state, 1.01),
        "not a model": ({"step": 3}, 0.4),
        "not tensors": ({**state, "embeddings.weight": "no"}, 0.4),
        "a key is missing": (without(state, "gen_z.weight_u"), 0.4),
        "a block is missing": (
            {key: value for key, value in state.items() if ".layers.10." not in key},
            0.4,
        ),
        "a shape": ({**state, "generator.layers.0.conv_1.bias": torch.zeros(3)}, 0.4),
    }
    for case, arguments in wrong.items():
        with pytest.raises(UserError) as caught:
            from_port(*arguments)
        assert "\n" not in str(caught.value), case
    with pytest.raises(UserError, match="truncation is 0, but should be more than 0"):
        from_port(state, 0)
