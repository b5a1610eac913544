"""A moving average of a detector's weights: `SOLVER.EMA_DECAY`."""

from __future__ import annotations

from typing import Any

from detectron2.engine import HookBase
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

KEY = "ema"  # of a checkpoint


def weight_average(model: nn.Module, decay: float) -> AveragedModel:
    """A model whose weights and buffers are an exponential moving average of those of `model`.

    Its first update copies them. From then on each is decay times itself plus 1 - decay times that
    of the model. Running statistics of norms are buffers.
    """
    average = get_ema_multi_avg_fn(decay)
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


class UpdateAverage(HookBase):
    """Updates the average after each step."""

    def __init__(self, average: AveragedModel) -> None:
        self.average = average

    def after_step(self) -> None:
        self.average.update_parameters(self.trainer.checkpointer.model)  # not wrapped


def averaged_weights(state: dict[str, Any]) -> dict[str, Any]:
    """The model's state dict in that of :func:`weight_average`, which is changed."""
    del state["n_averaged"]
    consume_prefix_in_state_dict_if_present(state, "module.")
    return state
