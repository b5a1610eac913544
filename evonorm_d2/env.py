"""`DETECTRON2_ENV_MODULE=evonorm_d2.env` lets Detectron2 set the plugin up, for its own tools.

Detectron2 calls :func:`setup_environment` when it is imported. Its own `train_net.py`, demo and
`DefaultPredictor` then take our config keys, resolve each config before they build its model, and
apply no weight decay to norm-acts. Only this module changes anything in Detectron2.
"""

from __future__ import annotations

from typing import Any, Callable


def setup_environment() -> None:
    """Called by Detectron2 at import; a second call changes nothing."""
    from detectron2 import solver as stock_solver
    from detectron2.config import defaults
    from detectron2.engine import defaults as engine
    from detectron2.modeling import META_ARCH_REGISTRY
    from detectron2.solver import build as stock_build

    from evonorm import recompute

    from . import solver
    from .config import add_evonorm_config, resolve
    from .data import register_embedded
    from .data.own import use_own_data

    if "EVONORM" in defaults._C.MODEL:
        return
    add_evonorm_config(defaults._C)
    register_embedded()
    stock_solver.build_optimizer = engine.build_optimizer = solver.build_optimizer
    stock_solver.get_default_optimizer_params = solver.get_default_optimizer_params
    stock_build.get_default_optimizer_params = solver.get_default_optimizer_params
    stock_get = META_ARCH_REGISTRY.get

    def get(name: str) -> Callable[[Any], Any]:
        def build(cfg: Any) -> Any:
            asked_for = cfg.MODEL.META_ARCHITECTURE
            resolve(use_own_data(cfg))
            own = cfg.MODEL.META_ARCHITECTURE if name == asked_for else name
            model = stock_get(own)(cfg)
            again = "EVONORM" in cfg.MODEL and cfg.MODEL.EVONORM.RECOMPUTE
            return recompute(model) if again else model

        return build

    META_ARCH_REGISTRY.get = get
