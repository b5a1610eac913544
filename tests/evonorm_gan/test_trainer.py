"""The training loop: its steps, its checkpoints, and what it does when training goes wrong."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch

from evonorm_gan import checkpoint, steps, trainer
from evonorm_gan.data import to_float
from evonorm_gan.evaluation import periodic
from evonorm_gan.evaluation.periodic import collapsed
from evonorm_gan.models import build_generator
from evonorm_gan.run import GanRun
from evonorm_gan.trainer import train
from evonorm_runs.errors import UserError

FID, IS = (f"{name}-digits (not comparable with Inception)" for name in ("FID", "IS"))


@pytest.fixture(autouse=True)
def data(tiny_set, monkeypatch):
    monkeypatch.setattr(trainer, "open_dataset", lambda cfg: tiny_set)


@pytest.fixture
def evaluations(monkeypatch):
    """evaluations(fids, scores): evaluations give these; returns the list of evaluated networks."""

    def give(fids, scores=None):
        values = iter(zip(fids, scores or [1.0] * len(fids)))
        seen = []

        class Evaluator:
            def __init__(self, cfg, dataset, device):
                self.about = ["extractor", "statistics"]

            def evaluate(self, G, seed):
                seen.append(copy.deepcopy(G.state_dict()))
                return dict(zip((FID, IS), next(values)))

        monkeypatch.setattr(periodic, "Evaluator", Evaluator)
        return seen

    return give


def lines(folder):
    """The log without times."""
    found = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    timed = ("time", "images_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in found]


class TestResuming:
    @pytest.mark.parametrize(
        "overrides",
        [
            (
                *("MODEL.NORM", "EvoNormS0", "DATA.FLIP", True, "SOLVER.ORTHO_REG", 1e-4),
                *("SOLVER.R1_GAMMA", 1.0, "SOLVER.R1_PERIOD", 2, "SOLVER.LECAM", 0.3),
                *("SOLVER.CR_REAL", 10.0, "SOLVER.CR_FAKE", 5.0),
            ),
            (
                *("MODEL.NORM", "BN-ReLU", "SOLVER.D_STEPS", 2, "SOLVER.ACCUMULATE", 2),
                *("SOLVER.ADA", 0.01, "SOLVER.ADA_IMAGES", 40),
            ),
            ("SOLVER.AMP", "bf16", "SOLVER.CHANNELS_LAST", True),
            ("SOLVER.AMP", "fp16", "SOLVER.DIFF_AUGMENT", "color,translation,cutout"),
        ],
    )
    def test_a_resumed_run_equals_an_uninterrupted_one(self, tiny_cfg, tmp_path, overrides, equal):
        # A checkpoint in the middle of what a line of the log is the mean over.
        common = ("SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.LOG_PERIOD", 2)
        whole, resumed = tmp_path / "whole", tmp_path / "resumed"
        train(tiny_cfg(*common, *overrides, "OUTPUT_DIR", whole))
        shutil.copytree(whole, resumed)  # as if it had been killed in the fifth step
        (resumed / "model_0000005.pth").unlink()
        (resumed / "last_checkpoint").write_text("model_0000003.pth")
        with open(resumed / "metrics.json", "a") as file:
            file.write('{"step": 5, "lo')
        torch.manual_seed(11)
        np.random.seed(11)
        train(tiny_cfg(*common, *overrides, "OUTPUT_DIR", resumed), resume=True)
        a, b = (torch.load(f / "model_0000005.pth", weights_only=True) for f in (whole, resumed))
        assert a.pop("config") != b.pop("config")  # they name their folders
        assert a["step"] == 5 and a["optimizer_g"]["state"] and a["data"]["batches"] >= 5
        assert equal(a, b)
        if "SOLVER.ADA" in overrides:  # moved after updates 4 and 8; a checkpoint is after 6
            assert a["ada"]["p"] not in (0, 1) and len(a["ada"]["signs"]) == 2
        assert lines(whole) == lines(resumed)
        assert [line["step"] for line in lines(whole)] == [2, 4, 5]

    def test_a_run_of_before_d_ended_at_8x8_goes_on_with_4x4(self, tiny_cfg, tmp_path, equal):
        """Its config has no such key; the two D have the same weights, but not the same scores."""
        common = ("SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 2, "MODEL.D_32_ENDS_AT")
        states = {}
        for ends_at in (4, None):
            run = tmp_path / str(ends_at)
            train(tiny_cfg(*common, ends_at, "OUTPUT_DIR", run))
            states[ends_at] = torch.load(run / "model_0000003.pth", weights_only=True)
        assert not equal(states[4]["discriminator"], states[None]["discriminator"])
        run = tmp_path / "4"
        data = torch.load(run / "model_0000002.pth", weights_only=True)
        text = data["config"].splitlines()
        data["config"] = "\n".join(line for line in text if "D_32_ENDS_AT" not in line)
        torch.save(data, run / "model_0000002.pth")
        (run / "last_checkpoint").write_text("model_0000002.pth")
        train(tiny_cfg(*common, None, "OUTPUT_DIR", run), resume=True)
        again = torch.load(run / "model_0000003.pth", weights_only=True)
        assert again.pop("config") == states[4].pop("config") and equal(again, states[4])

    def test_an_evaluation_that_was_not_finished_is_made_up(self, tiny_cfg, evaluations, tmp_path):
        cfg = tiny_cfg("TEST.EVAL_PERIOD", 2, "SOLVER.MAX_ITER", 4)
        evaluations([5.0])  # the second evaluation fails

        with pytest.raises(StopIteration):
            train(cfg)
        seen = evaluations([3.0])
        assert train(cfg, resume=True)[FID] == 3.0
        assert len(seen) == 1
        assert [line["step"] for line in lines(tmp_path / "run") if FID in line] == [2, 4]
        assert train(cfg, resume=True)[FID] == 3.0  # nothing is left to do
        assert len(seen) == 1

    def test_a_tampered_checkpoint_is_one_line(self, tiny_cfg, tmp_path):
        """Each loads as a file; what is wrong in it is found before the first step."""
        cfg = tiny_cfg("SOLVER.MAX_ITER", 2)
        train(cfg)
        path = tmp_path / "run" / "model_0000002.pth"
        good = torch.load(path, weights_only=True)
        first = good["optimizer_g"]["state"][0]
        tampered = {
            "step is text": {"step": "2"},
            "step is negative": {"step": -1},
            "step is a fraction": {"step": 1.5},
            "config is a number": {"config": 3},
            "config is a list": {"config": "[1, 2]"},
            "classes is a number": {"classes": 3},
            "no generator": {"generator": None},
            "another generator": {"generator": good["discriminator"]},
            "a weight is text": {"ema": {**good["ema"], "embedding.weight": "no"}},
            "no state of the optimizer": {"optimizer_g": {"state": {}, "param_groups": []}},
            "not one optimizer": {"optimizer_d": good["optimizer_g"]},
            "optimizer is text": {"optimizer_g": "adam"},
            "moments of a shape": {
                "optimizer_g": {
                    **good["optimizer_g"],
                    "state": {
                        **good["optimizer_g"]["state"],
                        0: {**first, "exp_avg": torch.ones(3)},
                    },
                }
            },
            "a moment is missing": {
                "optimizer_g": {
                    **good["optimizer_g"],
                    "state": {**good["optimizer_g"]["state"], 0: {"step": first["step"]}},
                }
            },
            "no scaler": {"scaler": {}},
            "random is empty": {"random": {}},
            "random is short": {"random": {**good["random"], "torch": torch.zeros(3).byte()}},
            "data is empty": {"data": {}},
            "sums are text": {"sums": {"loss_d": "much"}},
            "sums are a list": {"sums": [1]},
            "lecam is one number": {"lecam": [0.5]},
            "p is no probability": {"ada": {"p": 1.5, "signs": []}},
            "p is text": {"ada": {"p": "much", "signs": []}},
        }
        run = GanRun(cfg, torch.device("cpu"), good["classes"], 22)
        for case, changed in tampered.items():
            torch.save({**good, **changed}, path)
            with pytest.raises(UserError) as error:
                run.load(path)
            assert str(path) in str(error.value) and "\n" not in str(error.value), case
        torch.save(good, path)
        train(tiny_cfg("SOLVER.MAX_ITER", 3), resume=True)

    def test_what_would_overwrite_or_mix_runs_is_refused(self, tiny_cfg, tiny_set, tmp_path):
        cfg = tiny_cfg("SOLVER.MAX_ITER", 2)
        train(cfg)
        before = (tmp_path / "run" / "model_0000002.pth").read_bytes()
        with pytest.raises(UserError, match=r"holds a run \(model_0000002.pth\)"):
            train(cfg)
        with pytest.raises(UserError, match=r"has done 2 steps, but SOLVER.MAX_ITER is 1"):
            train(tiny_cfg("SOLVER.MAX_ITER", 1), resume=True)
        with pytest.raises(UserError, match=r"MODEL.NORM 'BN-ReLU' \(was 'EvoNormS0'\)"):
            train(tiny_cfg("MODEL.NORM", "BN-ReLU"), resume=True)
        tiny_set.labels = tiny_set.labels[:-1]
        with pytest.raises(UserError, match="on 22 images; DATA has 21 now"):
            train(cfg, resume=True)
        assert (tmp_path / "run" / "model_0000002.pth").read_bytes() == before

    @pytest.mark.parametrize("name", ["metrics.json", "config.yaml"])
    def test_what_is_left_of_a_run_is_not_overwritten(self, tiny_cfg, tmp_path, name):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / name).write_text("{}")
        with pytest.raises(UserError, match=rf"holds a run \({name}\)"):
            train(tiny_cfg())
        assert (tmp_path / "run" / name).read_text() == "{}"

    def test_what_evaluation_lacks_is_found_before_the_first_step(self, tiny_cfg, tmp_path):
        absent = ("TEST.EXTRACTOR", "inception-v3-compat", "TEST.INCEPTION_WEIGHTS", "absent.pth")
        with pytest.raises(UserError, match="absent.pth"):
            train(tiny_cfg("TEST.EVAL_PERIOD", 2, *absent))
        assert not (tmp_path / "run" / "metrics.json").exists()

    def test_a_generator_alone_is_no_run(self, tiny_cfg, tmp_path):
        cfg = tiny_cfg()
        (tmp_path / "run").mkdir()
        path = tmp_path / "run" / "model_0000000.pth"
        checkpoint.save_generator_only(path, build_generator(cfg), cfg, list("0123456789"))
        path.with_name("last_checkpoint").write_text(path.name)
        with pytest.raises(UserError, match="not a run to go on with"):
            train(cfg, resume=True)

    def test_learning_rates_may_be_changed(self, tiny_cfg, tmp_path):
        train(tiny_cfg("SOLVER.MAX_ITER", 1))
        train(tiny_cfg("SOLVER.MAX_ITER", 2, "SOLVER.LR_D", 1e-5), resume=True)
        last = torch.load(tmp_path / "run" / "model_0000002.pth", weights_only=True)
        assert last["optimizer_d"]["param_groups"][0]["lr"] == 1e-5
        assert [line["lr_d"] for line in lines(tmp_path / "run")] == [1e-3, 1e-5]


class TestSteps:
    @pytest.fixture
    def run(self, tiny_cfg, tiny_set):
        return GanRun(tiny_cfg(), torch.device("cpu"), tiny_set.classes, len(tiny_set))

    def test_a_step_of_each_network(self, run, tiny_set, equal):
        """Against plain autograd on copies, and Adam's first step: lr g / (|g| + eps)."""
        G, D = copy.deepcopy(run.G.network), copy.deepcopy(run.D.network)
        images, labels = tiny_set.images[:4], tiny_set.labels[:4]
        ((z, y),) = steps.draw(run, 1, 0)
        steps.discriminator_step(run, 1, 0, images, labels)
        scores = D(torch.cat([to_float(images), G(z, y).detach()]), torch.cat([labels, y]))
        loss = (1 - scores[:4]).clamp(min=0).mean() + (1 + scores[4:]).clamp(min=0).mean()
        assert run.pop_means()["loss_d"] == pytest.approx(loss.item(), rel=1e-5)
        self.check_adam(run.D, D, loss)
        assert equal(run.G.network.state_dict(), G.state_dict())

        D = copy.deepcopy(run.D.network)
        ((z, y),) = steps.draw(run, 1, 1)
        steps.generator_step(run, 1)
        loss = -D(G(z, y), y).mean()
        assert run.pop_means() == {"loss_g": pytest.approx(loss.item(), rel=1e-5)}
        self.check_adam(run.G, G, loss)
        parameters = zip(run.D.network.parameters(), D.parameters())
        assert all(torch.equal(p, q) for p, q in parameters)

    def check_adam(self, player, before, loss):
        gradients = torch.autograd.grad(loss, list(before.parameters()))
        for p, q, g in zip(player.network.parameters(), before.parameters(), gradients):
            torch.testing.assert_close(p, q - 1e-3 * g / (g.abs() + 1e-6), atol=2e-5, rtol=1e-4)

    def test_outputs_computed_again_change_nothing(self, tiny_cfg, tmp_path, equal):
        found = []
        for again in (False, True):
            cfg = tiny_cfg("MODEL.RECOMPUTE", again, "OUTPUT_DIR", tmp_path / str(again))
            train(cfg)
            found.append(lines(tmp_path / str(again)))
        assert found[0] == found[1]

    def test_parts_add_up_to_the_whole_batch(self, tiny_cfg, tiny_set):
        def gradient(parts):
            cfg = tiny_cfg("SOLVER.ACCUMULATE", parts)
            run = GanRun(cfg, torch.device("cpu"), tiny_set.classes, len(tiny_set))
            for network in (run.G.network, run.D.network):
                network.eval()  # the parts' power iterations would make other weights of them
            kept = []
            run.update = lambda player, step, losses: (
                kept.append([p.grad.clone() for p in player.network.parameters()])
                or losses.tolist()
            )
            steps.discriminator_step(run, 1, 0, tiny_set.images[:4], tiny_set.labels[:4])
            steps.generator_step(run, 1)
            return kept, run.pop_means()

        (whole, losses), (parts, part_losses) = gradient(1), gradient(2)
        for a, b in zip(sum(whole, []), sum(parts, [])):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
        assert losses == pytest.approx(part_losses, rel=1e-4)

    def test_draws_differ_between_steps_and_updates(self, run):
        drawn = [steps.draw(run, *at)[0][0] for at in ((1, 0), (1, 1), (2, 0), (1, 0))]
        assert torch.equal(drawn[0], drawn[3])
        assert not any(torch.equal(drawn[0], other) for other in drawn[1:3])

    def test_the_global_generators_play_no_part(self, tiny_cfg, tmp_path, equal):
        states = []
        for seed in (0, 1):
            folder = tmp_path / str(seed)
            cfg = tiny_cfg("OUTPUT_DIR", folder, "SOLVER.DIFF_AUGMENT", "color", "DATA.FLIP", True)
            torch.manual_seed(seed)
            np.random.seed(seed)
            train(cfg)
            states.append(torch.load(folder / "model_0000004.pth", weights_only=True)["ema"])
        assert equal(*states)

    def test_the_average_is_the_formulas_after_a_copy(self, tiny_cfg, monkeypatch, tmp_path, equal):
        weights = []
        real = trainer.update_average
        monkeypatch.setattr(
            trainer,
            "update_average",
            lambda run, step: (
                weights.append(run.G.network.embedding.weight.detach().double().clone()),
                real(run, step),
            ),
        )
        train(tiny_cfg("SOLVER.EMA_START", 2, "SOLVER.EMA_DECAY", 0.9, "MODEL.NORM", "BN-ReLU"))
        saved = [
            torch.load(tmp_path / "run" / f"model_000000{i}.pth", weights_only=True) for i in (2, 4)
        ]
        assert equal(saved[0]["ema"], saved[0]["generator"])
        expected = weights[1]
        for w in weights[2:]:
            expected = 0.9 * expected + 0.1 * w
        torch.testing.assert_close(saved[1]["ema"]["embedding.weight"].double(), expected)
        for name in ("last_norm.running_mean", "last_norm.running_var"):  # buffers are copied
            assert torch.equal(saved[1]["ema"][name], saved[1]["generator"][name])

    def test_a_batch_that_cannot_be_shared_out(self, tiny_cfg):
        with pytest.raises(UserError, match="BATCH_SIZE 4 can't be divided by 1 processes times"):
            train(tiny_cfg("SOLVER.ACCUMULATE", 3))


class TestDivergence:
    def test_stops_before_the_step_and_names_the_last_good_checkpoint(self, tiny_cfg, tmp_path):
        folder = tmp_path / "run"
        train(tiny_cfg("SOLVER.MAX_ITER", 2))
        with pytest.raises(UserError) as error:
            train(tiny_cfg("SOLVER.LR_D", 1e30, "SOLVER.MAX_ITER", 50), resume=True)
        message = str(error.value)
        assert message.startswith("step ") and "\n" not in message
        assert f"the last good checkpoint is {checkpoint.find_checkpoint(folder)};" in message
        assert "--resume with a lower SOLVER.LR_G and SOLVER.LR_D" in message
        saved = torch.load(checkpoint.find_checkpoint(folder), weights_only=True)
        for key in ("generator", "discriminator", "ema"):
            assert all(x.isfinite().all() for x in saved[key].values() if x.is_floating_point())

    @pytest.mark.parametrize("network", ["G", "D"])
    def test_gradients_that_are_not_finite_stop_it_too(self, tiny_cfg, tiny_set, network, equal):
        run = GanRun(tiny_cfg(), torch.device("cpu"), tiny_set.classes, len(tiny_set))
        player = getattr(run, network)
        for p in player.network.parameters():
            p.grad = torch.zeros_like(p)
        p.grad.view(-1)[0] = float("inf")
        before = copy.deepcopy(player.network.state_dict())
        with pytest.raises(UserError, match="loss is 0.5, the norm .*no checkpoint"):
            run.update(player, 7, torch.tensor([0.5]))
        assert equal(player.network.state_dict(), before)

    def test_fp16s_scaler_skips_such_a_step_instead(self, tiny_cfg, tiny_set, equal):
        cfg = tiny_cfg("SOLVER.AMP", "fp16")
        run = GanRun(cfg, torch.device("cpu"), tiny_set.classes, len(tiny_set))
        before, scale = copy.deepcopy(run.G.network.state_dict()), run.G.scaler.get_scale()

        def step():
            run.G.scaler.scale(torch.zeros(()))
            for p in run.G.network.parameters():
                p.grad = torch.full_like(p, float("inf"))
            run.update(run.G, 1, torch.tensor([0.5]))

        step()
        assert run.G.scaler.get_scale() == scale / 2
        assert equal(run.G.network.state_dict(), before)
        with pytest.raises(UserError, match="or without SOLVER.AMP"):  # but not for ever
            for _ in range(40):
                step()


class TestEvaluation:
    def test_the_best_checkpoints_are_kept(self, tiny_cfg, evaluations, tmp_path, equal):
        seen = evaluations([5.0, 3.0, 4.0], [1.0, 2.0, 2.5])
        cfg = tiny_cfg("TEST.EVAL_PERIOD", 2, "SOLVER.MAX_ITER", 6, "SOLVER.KEEP", 1)
        assert train(cfg) == {FID: 4.0, IS: 2.5}
        folder = tmp_path / "run"
        best = {x: checkpoint.load_checkpoint(folder / f"best_{x}.pth") for x in ("fid", "is")}
        assert {x: data["step"] for x, data in best.items()} == {"fid": 4, "is": 6}
        # What is loaded from it is what was evaluated, its spectral norm included.
        G = checkpoint.load_generator(folder / "best_fid.pth")[0]
        assert equal(G.state_dict(), seen[1])
        assert "optimizer_g" in best["fid"]
        assert [p.name for p in sorted(folder.glob("model_*"))] == ["model_0000006.pth"]

    def test_a_collapsed_run_stops_and_keeps_its_peak(
        self, tiny_cfg, evaluations, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setattr(periodic, "LOST", 1e9)
        evaluations([3.0, 4.0, 5.0, 6.0])
        cfg = tiny_cfg("TEST.EVAL_PERIOD", 2, "SOLVER.MAX_ITER", 8, "TEST.STOP_ON_COLLAPSE", True)
        assert train(cfg)[FID] == 5.0
        warning = [line for line in capsys.readouterr().out.splitlines() if "collapsed" in line]
        assert len(warning) == 1 and str(tmp_path / "run" / "best_fid.pth") in warning[0]
        assert checkpoint.load_checkpoint(tmp_path / "run" / "best_fid.pth")["step"] == 2
        assert checkpoint.load_checkpoint(checkpoint.find_checkpoint(tmp_path / "run"))["step"] == 6

    @pytest.mark.parametrize(
        "fids, losses, expected",
        [
            ([1, 2, 3], [0.5, 0.5, 0.001], True),
            ([1, 2, 3], [0.0, 0.0, 0.1], False),  # D has not won
            ([1, 3, 2], [0.0, 0.0, 0.0], False),
            ([9, 1, 2, 3], [0.5, 0.5, 0.5, 0.0], True),
            ([1, 2], [0.0, 0.0], False),
        ],
    )
    def test_collapse(self, fids, losses, expected):
        log = []
        for i, (fid, loss) in enumerate(zip(fids, losses), 1):
            log += [{"step": 10 * i, "loss_d": loss}, {"step": 10 * i, "FID": fid}]
        assert collapsed(log, "FID") is expected


class TestFiles:
    def test_a_start_that_fails_does_not_block_the_next(self, tiny_cfg, tmp_path):
        with pytest.raises(UserError, match="absent.pth"):
            train(
                tiny_cfg(
                    *("TEST.EXTRACTOR", "inception-v3-compat", "TEST.EVAL_PERIOD", 0),
                    *("TEST.INCEPTION_WEIGHTS", tmp_path / "absent.pth"),
                )
            )
        assert not (tmp_path / "run/config.yaml").exists()
        assert train(tiny_cfg("SOLVER.MAX_ITER", 1)) == {}

    def test_what_a_run_leaves(self, tiny_cfg, tmp_path, capsys, fake_wandb):
        cfg = tiny_cfg(
            *("MODEL.NORM", "EvoNormB0", "SOLVER.SAMPLE_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 0),
            *("WANDB_PROJECT", "mine"),
        )
        assert train(cfg) == {}
        folder = tmp_path / "run"
        names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert {n for n in names if not n.startswith("events")} == {
            *("config.yaml", "starts.json", "metrics.json", "last_checkpoint"),
            *("model_0000004.pth", "wandb_id"),
            *("samples/0000002.png", "samples/0000004.png"),
        }
        assert any(n.startswith("events.out.tfevents") for n in names)
        log = lines(folder)
        assert [line["step"] for line in log] == [1, 2, 3, 4]
        plain = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        assert [{"step": step, **values} for _, step, values in fake_wandb[1:-1]] == plain
        keys = {"loss_d", "loss_g", "d_real", "d_fake", "singular_value/G.first"}
        assert keys | {"singular_value/D.last"} <= log[0].keys()
        assert not any("blocks" in key for key in log[0])
        out = capsys.readouterr().out
        assert "10 classes" in out and "22 images" in out
        assert "EvoNormB0; parameters: generator " in out

    def test_the_first_lines_count_the_parameters(self, tiny_cfg, tiny_set):
        cfg = tiny_cfg("MODEL.G_CH", 32, "MODEL.D_CH", 32)
        run = GanRun(cfg, torch.device("cpu"), tiny_set.classes, len(tiny_set))
        counted = [sum(p.numel() for p in x.network.parameters()) for x in (run.G, run.D)]
        assert all(f"{n:,}" in str(run) for n in counted)


def test_a_formula_trains_as_the_layer_of_its_name(tiny_cfg, tmp_path, equal):
    networks = []
    for i, norm in enumerate(("EvoNormS0", "sigmoid(v1 * x) * x / std_g(x)")):
        cfg = tiny_cfg("MODEL.NORM", norm, "OUTPUT_DIR", tmp_path / str(i))
        train(cfg)
        last = checkpoint.find_checkpoint(tmp_path / str(i))
        networks.append(checkpoint.load_checkpoint(last)["generator"])
    assert equal(dict(networks[0]), dict(networks[1]))


def test_a_formula_of_ones_own_trains_and_goes_on(tiny_cfg):
    cfg = "MODEL.NORM", "tanh(x) / rms_b(x - mean_b(x)) + v0"
    train(tiny_cfg(*cfg, "SOLVER.MAX_ITER", 2))
    train(tiny_cfg(*cfg), resume=True)
    G = checkpoint.load_generator(tiny_cfg(*cfg).OUTPUT_DIR)[0]
    assert G.blocks[0].norms[0].norm.running_rest.shape[0] == 2
    with pytest.raises(UserError, match=r"MODEL.NORM 'EvoNormS0' \(was 'tanh\(x\) / rms_b"):
        train(tiny_cfg("MODEL.NORM", "EvoNormS0"), resume=True)
