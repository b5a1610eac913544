"""Runs that start from weights, freeze blocks of D, or go on from a chosen checkpoint."""

from __future__ import annotations

import shutil

import pytest
import torch

from evonorm_gan import checkpoint, finetune, trainer
from evonorm_gan.models import Discriminator, Generator, make_spectral_norm_exact
from evonorm_gan.models.port import make_trainable
from evonorm_gan.run import GanRun
from evonorm_gan.trainer import train
from evonorm_runs.errors import UserError


@pytest.fixture(autouse=True)
def data(tiny_set, monkeypatch):
    monkeypatch.setattr(trainer, "open_dataset", lambda cfg: tiny_set)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return tmp_path_factory.mktemp("once") / "first"


@pytest.fixture
def trained(once, tiny_cfg, tmp_path):
    """The run of three steps in tmp_path/first; its checkpoints of steps 1 to 3 are kept."""
    if not once.exists():
        train(tiny_cfg("OUTPUT_DIR", once, *EACH_STEP))
    return shutil.copytree(once, tmp_path / "first")


EACH_STEP = ("SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.KEEP", 9, "SOLVER.MAX_ITER", 3)


def read(path):
    return torch.load(path, weights_only=True)


def new_run(cfg, classes):
    return GanRun(cfg, torch.device("cpu"), classes, 22)


def test_a_run_starts_from_all_networks_of_another(trained, tiny_cfg, tiny_set, equal):
    last = read(trained / "model_0000003.pth")
    run = new_run(tiny_cfg("MODEL.INIT", trained), tiny_set.classes)
    assert run.start_from_weights() == f"starts from {trained / 'model_0000003.pth'}"
    assert run.step == 0
    for network, key in ((run.G, "generator"), (run.D, "discriminator")):
        assert equal(network.network.state_dict(), last[key])
    assert equal(run.ema.module.state_dict(), last["ema"])
    assert not equal(last["ema"], last["generator"])


def test_classes_of_another_number_are_taken_by_name(trained, tiny_cfg):
    names = ["class 7", "other", "class 2"]
    cfg = tiny_cfg("MODEL.INIT", trained, "MODEL.NUM_CLASSES", 3)
    run = new_run(cfg, names)
    assert run.start_from_weights().endswith(
        "; it has 10 classes, not 3: the embeddings of 2 are taken by name, 1 begin with the mean "
        "of all"
    )
    last = read(trained / "model_0000003.pth")
    there = last["generator"]["embedding.weight"]
    expected = torch.stack([there[7], there.sum(0) / 10, there[2]])
    torch.testing.assert_close(run.G.network.embedding.weight.data, expected)
    there = last["discriminator"]["embedding.parametrizations.weight.original"]
    expected = torch.stack([there[7], there.sum(0) / 10, there[2]])
    expected = expected / torch.linalg.svdvals(expected)[0]
    found = run.D.network.eval().embedding.weight
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_blocks_of_d_are_frozen_and_the_run_goes_on(trained, tiny_cfg, tmp_path, equal, capsys):
    settings = ("MODEL.INIT", trained, "SOLVER.FREEZE_D", 3, *EACH_STEP, "SOLVER.MAX_ITER", 2)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    capsys.readouterr()
    train(tiny_cfg(*settings, "OUTPUT_DIR", whole))
    assert capsys.readouterr().out.startswith(f"starts from {trained / 'model_0000003.pth'}\n")
    before = read(trained / "model_0000003.pth")["discriminator"]
    after = read(whole / "model_0000002.pth")["discriminator"]
    same = {key for key in before if torch.equal(before[key], after[key])}
    frozen = {"first", "blocks.0", "blocks.1", "blocks.2"}
    expected = {key for key in before if key.startswith(tuple(f"{name}." for name in frozen))}
    assert len(expected) > 30  # weights, biases, vectors of spectral norms
    # D's last bias has no gradient while the hinge is between its corners.
    assert {key for key in same if not key.startswith("last.")} == expected
    shutil.copytree(whole, resumed)
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    shutil.rmtree(trained)  # it is needed no more
    train(tiny_cfg(*settings, "OUTPUT_DIR", resumed), resume=True)
    assert equal(read(resumed / "model_0000002.pth")["discriminator"], after)


def test_attention_is_frozen_with_the_blocks_around_it():
    D = Discriminator(128, 4, 3, attention=64)
    for num, frozen in ((0, False), (2, True), (1, False), (10, True)):
        D.requires_grad_(True)
        finetune.freeze_first_blocks(D, num)
        assert [D.attention.gain.requires_grad, D.first.bias.requires_grad] == [
            not frozen,
            num == 0,
        ]
        assert [block.convs[0].bias.requires_grad for block in D.blocks] == [
            i >= num for i in range(len(D.blocks))
        ]
    with pytest.raises(UserError, match="SOLVER.FREEZE_D is 11, .* has 10 blocks"):
        finetune.freeze_first_blocks(D, 11)


def test_a_generator_alone_starts_both_its_copies(tiny_cfg, tmp_path, tiny_set, equal):
    cfg = tiny_cfg("MODEL.NORM", "BN-ReLU")
    G = checkpoint.build_generator(cfg)
    path = tmp_path / "G.pth"
    checkpoint.save_generator_only(path, G, cfg, tiny_set.classes)
    run = new_run(tiny_cfg("MODEL.NORM", "BN-ReLU", "MODEL.INIT", path), tiny_set.classes)
    assert run.start_from_weights() == f"starts from {path}, a generator; the discriminator is new"
    for network in (run.G.network, run.ema.module):
        torch.testing.assert_close(network.state_dict(), G.state_dict())
    cfg = tiny_cfg("MODEL.NORM", "BN-ReLU", "MODEL.INIT", path, "SOLVER.FREEZE_D", 1)
    with pytest.raises(UserError, match="holds a generator only: there is no trained discr"):
        finetune.start_from_weights(cfg, None, None, None, tiny_set.classes)


@torch.no_grad()
def test_an_import_gives_the_same_images_in_training():
    """Its last convolution is divided by another number than its largest singular value."""
    G = Generator(32, 8, 10, "BN-ReLU", dim_z=8).eval()
    G.last_norm.bias.normal_()
    make_spectral_norm_exact(G)
    G.last.parametrizations.weight[0]._u *= 1.7
    z, y = torch.randn(4, 8), torch.arange(4)
    expected = G(z, y)
    make_trainable(G)
    torch.testing.assert_close(G(z, y), expected)
    G.last.train()  # a power iteration
    torch.testing.assert_close(G(z, y), expected, rtol=1e-4, atol=1e-5)
    assert (expected - torch.tanh(1.7 * torch.atanh(expected))).abs().max() > 0.01


def test_weights_of_another_model_are_refused(trained, tiny_cfg):
    networks = (None, None, None)  # which are not looked at
    for key, value in (("G_CH", 16), ("D_CH", 16), ("NORM", "GN-ReLU"), ("D_32_ENDS_AT", 8)):
        cfg = tiny_cfg("MODEL.INIT", trained, f"MODEL.{key}", value)
        with pytest.raises(UserError, match=rf"model_0000003.pth has MODEL.{key} .* same"):
            finetune.start_from_weights(cfg, *networks, [])
    with pytest.raises(UserError, match="FREEZE_D is 2, but there is no MODEL.INIT"):
        train(tiny_cfg("SOLVER.FREEZE_D", 2))
    with pytest.raises(UserError, match="no such checkpoint"):
        train(tiny_cfg("MODEL.INIT", "absent.pth"))


def test_a_run_goes_on_from_a_chosen_checkpoint(trained, tiny_cfg, tmp_path, equal):
    expected = read(trained / "model_0000003.pth")
    other = tmp_path / "other"
    for folder in (other, trained):  # a new folder, then its own
        (folder / "model_0000003.pth").unlink(missing_ok=True)
        cfg = tiny_cfg("OUTPUT_DIR", folder, *EACH_STEP)
        train(cfg, resume=trained / "model_0000002.pth")
        assert (folder / "model_0000002.pth").exists()  # to go on from, whenever it is killed
        assert checkpoint.find_checkpoint(folder).name == "model_0000003.pth"
        log = (folder / "metrics.json").read_text().splitlines()
        assert len(log) == (3 if folder == trained else 1)
        found = read(folder / "model_0000003.pth")
        assert equal({**found, "config": ""}, {**expected, "config": ""})
    with pytest.raises(UserError, match="first holds another run than .*name a new OUTPUT_DIR"):
        train(tiny_cfg("OUTPUT_DIR", trained), resume=other / "model_0000003.pth")
