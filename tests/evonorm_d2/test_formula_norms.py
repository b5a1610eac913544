"""A formula in a NORM key: read from all that a config comes from, refused in one line, trained."""

from __future__ import annotations

import shutil

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_setup

from evonorm import FORMULAS
from evonorm_d2 import resolve, resolve_lazy
from evonorm_d2 import train as training
from evonorm_d2.data import register_digits
from evonorm_d2.norm import norm_acts
from evonorm_d2.run_config import load_config
from evonorm_runs.errors import UserError

S0 = FORMULAS["EvoNormS0"]
# No kernel computes it. It has both vectors and a statistic of the batch that no EvoNorm has.
OWN = "max(x, v0) / (1 + abs(v1 * mean_b(x)))"
KEYS = ("RESNETS.NORM", "FPN.NORM", "RPN.NORM", "ROI_BOX_HEAD.NORM", "ROI_MASK_HEAD.NORM")
BACKBONE = "BACKBONE: {NAME: build_resnet_fpn_backbone}"


@pytest.fixture
def load(tmp_path):
    """load(yaml, *overrides): the config of a run on the CPU."""

    def make(text, *overrides):
        (tmp_path / "config.yaml").write_text(text)
        return load_config(str(tmp_path / "config.yaml"), ("MODEL.DEVICE", "cpu", *overrides))

    return make


class TestReading:
    @pytest.mark.parametrize(
        "value", [S0, f'"{S0}"', f"'{S0}'", S0.replace(" / ", "\n      / "), f">-\n      {S0}"]
    )
    def test_from_yaml(self, load, value):
        cfg = load(f"MODEL:\n  {BACKBONE}\n  FPN:\n    NORM: {value}\n")
        assert cfg.MODEL.FPN.NORM == S0
        assert cfg.MODEL.BACKBONE.NAME == "build_norm_act_resnet_fpn_backbone"

    @pytest.mark.parametrize(
        "formula", [*sorted({*FORMULAS.values()}), OWN, "0.5 * x", "(x)", "-x", "3 - x"]
    )
    def test_from_the_command_line_and_back_from_the_runs_folder(self, load, formula):
        """Detectron2 reads such a value as Python's literal, if it is one."""
        cfg = load(f"MODEL: {{{BACKBONE}}}", "MODEL.FPN.NORM", formula)
        assert cfg.MODEL.FPN.NORM == formula
        assert cfg.MODEL.BACKBONE.NAME == "build_norm_act_resnet_fpn_backbone"
        assert load(cfg.dump()).MODEL.FPN.NORM == formula

    def test_with_quotes_around_it_on_the_command_line(self, load):
        assert load(f"MODEL: {{{BACKBONE}}}", "MODEL.FPN.NORM", f"'{S0}'").MODEL.FPN.NORM == S0

    def test_from_a_lazy_config_and_its_overrides(self):
        config = LazyConfig.apply_overrides(
            model_zoo.get_config("common/models/mask_rcnn_fpn.py"),
            [f'model.backbone.norm="{S0}"', f'model.proposal_generator.head.norm="{OWN}"'],
        )
        with torch.device("meta"):
            model = instantiate(resolve_lazy(config.model))
        assert [layer.norm_act for layer in norm_acts(model)] == [S0] * 8 + [OWN] * 5


class TestRefusals:
    BROKEN = "x * sigmod(v1 * x)"
    LINE = f"\"{BROKEN}\": unknown function 'sigmod' at character 5: did you mean 'sigmoid'?"

    @pytest.mark.parametrize("key", [*KEYS, "SEM_SEG_HEAD.NORM", "RETINANET.NORM"])
    def test_a_broken_formula_names_its_key_and_the_place(self, key, stock_cfg):
        with pytest.raises(ValueError) as error:
            resolve(stock_cfg("Base-RCNN-FPN.yaml", f"MODEL.{key}", self.BROKEN))
        assert str(error.value) == f"MODEL.{key}: {self.LINE}"

    def test_in_a_run(self, load):
        with pytest.raises(UserError) as error:
            load(f"MODEL: {{{BACKBONE}, FPN: {{NORM: {self.BROKEN}}}}}")
        assert str(error.value) == f"MODEL.FPN.NORM: {self.LINE}"

    def test_in_a_lazy_config(self):
        model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
        model.backbone.norm = self.BROKEN
        with pytest.raises(ValueError) as error:
            resolve_lazy(model)
        assert str(error.value) == f"norm of FPN: {self.LINE}"

    def test_a_component_without_a_place_for_it(self, stock_cfg):
        with pytest.raises(ValueError) as error:
            other = ("MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone")
            resolve(stock_cfg("Base-RCNN-C4.yaml", "MODEL.RESNETS.NORM", S0, *other))
        assert str(error.value).startswith(f"MODEL.RESNETS.NORM is {S0}, but 'build_resnet_deep")


class TestRuns:
    """On the digits, with the trainer of tools/train_net.py."""

    @pytest.fixture(autouse=True)
    def digits(self, digits_root):
        register_digits(digits_root)

    @pytest.fixture
    def config(self, tiny_run, tmp_path):
        """config(norm, folder): of a run in a folder, with the norm at all NORM keys."""

        def make(norm, folder, *overrides):
            norms = [x for key in KEYS for x in (f"MODEL.{key}", norm)]
            settings = ("SOLVER.MAX_ITER", 4, "OUTPUT_DIR", tmp_path / folder, *overrides)
            return load_config(*tiny_run("EvoNormS0", *norms, *settings))

        return make

    def train(self, cfg, resume=False):
        """What is in the last checkpoint, and the results of the evaluation."""
        default_setup(cfg, None)
        results = training.train(cfg, resume)
        return torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth", weights_only=True), results

    def test_a_formula_trains_as_the_name_that_it_has_bit_for_bit(self, config, equal):
        named, named_results = self.train(config("EvoNormS0", "named"))
        written, results = self.train(config("x/std_g(x) * sigmoid(v1*x)", "written"))
        assert equal(named["model"], written["model"])
        assert equal(named["trainer"], written["trainer"])
        assert repr(named_results) == repr(results)  # repr, as NaN equals nothing

    def test_a_formula_without_a_name_is_resumed_and_evaluated(self, config, tmp_path, equal):
        whole, results = self.train(config(OWN, "whole"))
        assert {"v", "v0", "running_rest"} <= {key.rpartition(".")[2] for key in whole["model"]}
        moved = whole["model"]["backbone.bottom_up.stem.conv1.norm.running_rest"]
        assert moved.abs().sum() > 0
        # As if the first run had been killed after two steps.
        (tmp_path / "resumed").mkdir()
        shutil.copy(tmp_path / "whole" / "model_0000001.pth", tmp_path / "resumed")
        (tmp_path / "resumed" / "last_checkpoint").write_text("model_0000001.pth")
        cfg = config(OWN, "resumed")
        resumed, _ = self.train(cfg, resume=True)
        assert equal(whole["model"], resumed["model"])
        assert equal(whole["trainer"], resumed["trainer"])
        assert repr(training.evaluate(cfg, resume=True)) == repr(results)

    def test_a_formula_takes_no_weights_of_another(self, config, tmp_path):
        trainer = training.Trainer(config(OWN, "one"))
        trainer.checkpointer.save("model")
        cfg = config(S0, "two", "MODEL.WEIGHTS", tmp_path / "one" / "model.pth")
        with pytest.raises(UserError, match="another norm's weights here, not those of") as error:
            training.train(cfg)
        assert "\n" not in str(error.value) and S0 in str(error.value)
