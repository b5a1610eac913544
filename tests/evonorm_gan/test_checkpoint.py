"""Checkpoints: whole or absent, safe to load, and complete."""

from __future__ import annotations

import pickle

import pytest
import torch

from evonorm_gan import checkpoint
from evonorm_gan.models import build_generator, make_spectral_norm_exact
from evonorm_runs.checkpoint import check_same_run
from evonorm_runs.errors import UserError


@pytest.fixture
def make(tiny_cfg):
    """make(step): the contents of a checkpoint."""
    cfg = tiny_cfg()
    G = build_generator(cfg)

    def contents(step, **more):
        state = {"step": step, "config": cfg.dump(), "classes": list("0123456789")}
        return {**state, "ema": G.state_dict(), **more}

    return contents


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class TestSaving:
    def test_the_last_few_are_kept(self, make, tmp_path):
        for step in (1, 2, 30, 4):
            checkpoint.save_checkpoint(tmp_path, make(step), keep=2)
        # 30 is what an earlier run left that was killed before it had named it the last.
        expected = ["last_checkpoint", "model_0000002.pth", "model_0000004.pth"]
        assert names(tmp_path) == [*expected, "model_0000030.pth"]
        assert checkpoint.find_checkpoint(tmp_path).name == "model_0000004.pth"
        assert checkpoint.load_checkpoint(tmp_path / "model_0000004.pth")["step"] == 4

    @pytest.mark.parametrize("moment", ["write", "tag"])
    def test_stopped_in_the_middle_the_one_before_stays(self, make, tmp_path, monkeypatch, moment):
        checkpoint.save_checkpoint(tmp_path, make(1), keep=1)
        if moment == "write":

            def half(data, file):
                file.write(b"PK half of a file")
                raise KeyboardInterrupt

            monkeypatch.setattr(torch, "save", half)
        else:
            real = checkpoint.atomic_write

            def stop_at_the_tag(path):
                if path.name == checkpoint.TAG:
                    raise KeyboardInterrupt
                return real(path)

            monkeypatch.setattr(checkpoint, "atomic_write", stop_at_the_tag)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save_checkpoint(tmp_path, make(2), keep=1)
        monkeypatch.undo()
        last = checkpoint.find_checkpoint(tmp_path)
        assert checkpoint.load_checkpoint(last)["step"] == 1
        # The next one removes what was left.
        checkpoint.save_checkpoint(tmp_path, make(3), keep=1)
        assert names(tmp_path) == ["last_checkpoint", "model_0000003.pth"]

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite_are_never_written(self, make, tmp_path, value):
        checkpoint.save_checkpoint(tmp_path, make(1), keep=1)
        bad = {"state": {0: {"exp_avg": torch.tensor([0.0, value])}}}
        with pytest.raises(UserError, match="optimizer_g.state.0.exp_avg has values that are not"):
            checkpoint.save_checkpoint(tmp_path, make(2, optimizer_g=bad), keep=1)
        assert names(tmp_path) == ["last_checkpoint", "model_0000001.pth"]

    def test_an_import_overwrites_nothing(self, tiny_cfg, tmp_path):
        cfg, path = tiny_cfg(), tmp_path / "imported.pth"
        G = build_generator(cfg)
        checkpoint.save_generator_only(path, G, cfg, ["a", "b"])
        before = path.read_bytes()
        with pytest.raises(UserError, match="imported.pth exists"):
            checkpoint.save_generator_only(path, G, cfg, ["a", "b"])
        assert path.read_bytes() == before
        assert checkpoint.load_generator(path)[2:] == (["a", "b"], 0)


class TestLoading:
    def test_a_generator(self, tiny_cfg, tmp_path):
        cfg = tiny_cfg("MODEL.NORM", "BN-ReLU", "MODEL.EPS", "None", "TEST.TRUNCATION", 0.5)
        torch.manual_seed(3)
        G, average = build_generator(cfg), build_generator(cfg)
        data = {"step": 7, "config": cfg.dump(), "classes": list("0123456789")}
        data |= {"generator": G.state_dict(), "ema": average.state_dict()}
        checkpoint.save_checkpoint(tmp_path, data, keep=1)
        z, y = torch.randn(2, 8), torch.tensor([1, 5])
        for ema, original in ((True, average), (False, G)):
            loaded, its_cfg, classes, step = checkpoint.load_generator(tmp_path, ema)
            assert not loaded.training and (classes, step) == (list("0123456789"), 7)
            assert its_cfg == cfg
            if ema:
                make_spectral_norm_exact(original)
            assert torch.equal(loaded(z, y), original.eval()(z, y))
        assert not torch.equal(G(z, y), average(z, y))

    def test_the_averages_spectral_norm_is_exact_and_an_imported_ones_stays(self, make, tmp_path):
        data = make(1)
        torch.nn.init.normal_(data["ema"]["first.parametrizations.weight.original"])
        path = tmp_path / "a.pth"
        top = []
        for more in ({"generator": data["ema"]}, {}):
            torch.save({**data, **more}, path)
            G = checkpoint.load_generator(path)[0]
            top.append(torch.linalg.matrix_norm(G.first.weight, 2).item())
        assert top[0] == pytest.approx(1, abs=1e-5) and abs(top[1] - 1) > 0.1

    def test_a_file_older_than_a_key_means_what_it_meant(self, make, tmp_path):
        """D's last maps were 4x4 at 32x32; an imported generator was the port's."""
        text = make(1)["config"].splitlines()
        keys = ("TRUNCATE_BY", "D_32_ENDS_AT")
        assert sum(key in line for line in text for key in keys) == len(keys)
        old = "\n".join(line for line in text if not any(key in line for key in keys))
        cases = {
            "trained": ({"config": old, "generator": {}}, "resample", 4),
            "imported": ({"config": old}, "scale", 4),
            "larger": ({"config": old.replace("RESOLUTION: 32", "RESOLUTION: 64")}, "scale", None),
        }
        for case, (data, by, ends_at) in cases.items():
            cfg = checkpoint.config_of(data, "old.pth", "cpu")
            assert (cfg.TEST.TRUNCATE_BY, cfg.MODEL.D_32_ENDS_AT) == (by, ends_at), case

    def test_runs_no_code(self, tmp_path):
        path = tmp_path / "evil.pth"
        path.write_bytes(pickle.dumps({"step": print}, protocol=2))
        with pytest.raises(UserError) as error:
            checkpoint.load_generator(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    def test_what_is_wrong_is_named(self, make, tmp_path):
        def message(path, **options):
            with pytest.raises(UserError) as error:
                checkpoint.load_generator(path, **options)
            assert "\n" not in str(error.value)
            return str(error.value)

        assert "no such checkpoint" in message(tmp_path / "absent.pth")
        assert "no checkpoint of a run" in message(tmp_path)
        (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
        assert "names model_0000009.pth, which is not there" in message(tmp_path)
        (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe\x00")
        assert "last_checkpoint: not the name of a checkpoint: 'utf-8'" in message(tmp_path)
        (tmp_path / "last_checkpoint").write_bytes(b"model_\x00.pth")
        assert "last_checkpoint: " in message(tmp_path)
        torch.save({"model": {}}, tmp_path / "other.pth")
        assert "not a checkpoint of train_gan.py" in message(tmp_path / "other.pth")
        checkpoint.write_checkpoint(tmp_path / "a.pth", make(1))
        assert "holds one set of weights only" in message(tmp_path / "a.pth", ema=False)
        checkpoint.write_checkpoint(tmp_path / "b.pth", make(1, config="MODEL: {WIDTH: 3}"))
        assert "b.pth: its config: Non-existent config key: MODEL.WIDTH" in message(
            tmp_path / "b.pth"
        )
        checkpoint.write_checkpoint(tmp_path / "c.pth", make(1, config="MODEL: {G_CH: 16}"))
        assert "c.pth: Error(s) in loading state_dict" in message(tmp_path / "c.pth")
        (tmp_path / "cut.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:1000])
        assert "cut.pth: damaged" in message(tmp_path / "cut.pth")


def test_another_run_is_told_by_its_keys(tiny_cfg, tmp_path):
    old = tiny_cfg()
    harmless = ("SOLVER.MAX_ITER", 9, "SOLVER.LR_G", 1e-5, "TEST.EVAL_PERIOD", 7, "OUTPUT_DIR", "x")
    check_same_run(old, tiny_cfg(*harmless), tmp_path, checkpoint.MAY_DIFFER)
    other = tiny_cfg("MODEL.NORM", "BN-ReLU", "TEST.NUM_SAMPLES", 21, *harmless)
    with pytest.raises(UserError) as error:
        check_same_run(old, other, tmp_path, checkpoint.MAY_DIFFER)
    assert "MODEL.NORM 'BN-ReLU' (was 'EvoNormS0'), TEST.NUM_SAMPLES 21 (was 20);" in str(
        error.value
    )
    assert "MAX_ITER" not in str(error.value) and "EVAL" not in str(error.value)


def test_a_run_killed_before_its_first_tag_has_its_checkpoint(tmp_path):
    for step in (2, 4):
        (tmp_path / f"model_000000{step}.pth").write_bytes(b"whole")
    assert checkpoint.find_checkpoint(tmp_path).name == "model_0000004.pth"
