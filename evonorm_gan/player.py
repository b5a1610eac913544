"""A network of a GAN with what trains it: gradients, optimizer, scaler."""

from __future__ import annotations

from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from evonorm_runs import distributed


class Player:
    """A network with what trains it.

    Attributes:
        network: the module itself.
        wrapped: the same, its gradients averaged over the ranks.
        frozen: the names of the parameters that are not trained.
    """

    def __init__(self, network: nn.Module, lr: float, cfg: CfgNode, device: torch.device) -> None:
        self.network = network
        self.frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
        self.wrapped = distributed.wrap(network)
        # No weight decay on anything, so EvoNorm's v needs no group of its own.
        self.optimizer = torch.optim.Adam(
            self.trained().values(), lr, cfg.SOLVER.BETAS, cfg.SOLVER.EPS, fused=True
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=cfg.SOLVER.AMP == "fp16")

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are not frozen, by name."""
        parameters = self.network.named_parameters()
        return {name: p for name, p in parameters if name not in self.frozen}

    def requires_grad_(self, flag: bool) -> None:
        """Whether gradients are taken of the parameters; never of frozen ones."""
        for p in self.trained().values():
            p.requires_grad_(flag)

    def gradients(self, synchronise: bool) -> Any:
        """Around a forward and backward pass; without `synchronise` ranks keep their gradients."""
        return distributed.no_sync(self.wrapped, not synchronise)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def gradient_norm(self) -> Tensor:
        """Over all parameters; 1 under fp16, where the scaler looks after it."""
        gradients = [p.grad for p in self.trained().values()]
        if self.scaler.is_enabled():
            return gradients[0].new_ones(())
        return torch.nn.utils.get_total_norm(gradients)

    def step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def load(self, network: dict, optimizer: dict, scaler: dict) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        self.network.load_state_dict(network)
        self.optimizer.load_state_dict(optimizer)
        self.optimizer.param_groups[0]["lr"] = lr  # the config's, which may have been changed
        for name, p in self.trained().items():
            for moment in ("exp_avg", "exp_avg_sq"):
                shape = self.optimizer.state[p][moment].shape
                if shape != p.shape:
                    raise ValueError(f"{moment} of {name} has shape {tuple(shape)}")
        if scaler:
            self.scaler.load_state_dict(scaler)
