"""The embedded sets' classifiers as extractors."""

from __future__ import annotations

import pytest
import torch
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from evonorm_gan.config import EMBEDDED
from evonorm_gan.data import open_dataset
from evonorm_gan.evaluation import embedded_extractor
from evonorm_gan.evaluation.embedded_extractor import (
    LAYERS,
    EmbeddedExtractor,
    accuracy,
    build_classifier,
    describe,
    register,
    train_classifier,
    trained_weights,
)


@pytest.fixture
def small(tiny_set, monkeypatch):
    monkeypatch.setattr(embedded_extractor, "STEPS", {"digits": 2})
    monkeypatch.setattr(embedded_extractor, "open_dataset", lambda cfg, split: tiny_set)


@pytest.mark.slow
@pytest.mark.parametrize("name, least", [("digits", 0.97), ("garments", 0.86)])
def test_it_knows_the_validation_images(name, least, tiny_cfg, digits_cache):
    path = trained_weights(tiny_cfg("TEST.CACHE_DIR", digits_cache, "TEST.EXTRACTOR", name))
    content = torch.load(path, weights_only=True)
    assert content["accuracy"] > least
    percent = f"{100 * content['accuracy']:.1f} %"
    assert (
        describe(name, path)
        == f"classifier of the {name}, {percent} of the validation images right"
    )


def test_a_runs_own_folder_of_images_does_not_matter(tiny_cfg):
    cfg = tiny_cfg("DATA.NAME", "", "DATA.ROOT", "elsewhere", "TEST.EXTRACTOR", "garments")
    assert len(open_dataset(embedded_extractor._own_config(cfg), "val")) == 1000


def test_accuracy_is_the_share_of_right_answers(tiny_set):
    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.eye(10)[torch.full((len(x),), 1)]

    assert accuracy(Constant(), tiny_set) == pytest.approx(3 / 22)  # classes 0, 1 have three of 22


def test_the_same_weights_are_trained_and_the_global_generator_is_left(tiny_set):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = train_classifier(tiny_set, 2)
    assert torch.equal(state, torch.get_rng_state()) and not first.training
    torch.manual_seed(4)
    second = train_classifier(tiny_set, 2).state_dict()
    assert all(torch.equal(x, second[name]) for name, x in first.state_dict().items())
    untrained = build_classifier().state_dict()
    assert not torch.equal(untrained["0.weight"], second["0.weight"])


def test_weights_are_trained_once_for_one_key(small, tiny_cfg, monkeypatch):
    path = trained_weights(tiny_cfg())
    before = path.stat().st_mtime_ns
    # The run's own data does not matter, nor does its resolution.
    assert trained_weights(tiny_cfg("MODEL.RESOLUTION", 64)) == path
    assert path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:-50])
    assert trained_weights(tiny_cfg()) == path
    torch.load(path, weights_only=True)
    monkeypatch.setattr(embedded_extractor, "VERSION", 2)
    assert trained_weights(tiny_cfg()) != path


def test_layers_are_those_asked_for_and_logits_come_from_the_penultimate(small, tiny_cfg):
    path = trained_weights(tiny_cfg())
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)

    def features(*layers):
        model = create_feature_extractor(
            "digits",
            list(layers),
            cuda=False,
            feature_extractor_weights_path=str(path),
            verbose=False,
        )
        return model, model(images)

    model, (penultimate, logits) = features(*LAYERS)
    assert penultimate.shape == (5, 128) and logits.shape == (5, 10)
    linear = model.model[-1]
    expected = penultimate.double() @ linear.weight.double().T + linear.bias.double()
    assert torch.allclose(logits.double(), expected, atol=1e-5)
    _, swapped = features("logits", "penultimate")
    assert torch.equal(swapped[0], logits) and torch.equal(swapped[1], penultimate)
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_other_sizes_are_resized(small, tiny_cfg):
    model = EmbeddedExtractor("digits", ["logits"], str(trained_weights(tiny_cfg()))).eval()
    flat = torch.full((2, 3, 32, 32), 77, dtype=torch.uint8)
    larger = torch.full((2, 3, 64, 64), 77, dtype=torch.uint8)
    assert torch.allclose(model(flat)[0], model(larger)[0], atol=1e-4)


def test_torch_fidelity_knows_them_once():
    register()
    register()
    assert all(FEATURE_EXTRACTORS_REGISTRY[name] is EmbeddedExtractor for name in EMBEDDED)
    with pytest.raises(ValueError, match="weights_path"):
        EmbeddedExtractor("digits", ["logits"])
    with pytest.raises(ValueError, match="float64"):
        EmbeddedExtractor("digits", ["logits"], "x", feature_extractor_internal_dtype="float64")
