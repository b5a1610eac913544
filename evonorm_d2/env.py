"""For stock tools: `DETECTRON2_ENV_MODULE=evonorm_d2.env` lets Detectron2 set the plugin up itself.

Detectron2 calls :func:`setup_environment` when it is imported. Its own `train_net.py`, demo and
`DefaultPredictor` then take our config keys, resolve each config before they build its model, and
spare norm-acts the weight decay. This is the only place that changes anything of Detectron2's.
"""

from __future__ import annotations

import functools
from typing import Any, Callable


def setup_environment() -> None:
    """Called by Detectron2 at import; a second call changes nothing."""
    from detectron2.config import defaults
    from detectron2.engine import defaults as engine
    from detectron2.modeling import META_ARCH_REGISTRY

    from . import solver
    from .config import add_evonorm_config, resolve
    from .data import register_digits

    if "EVONORM" in defaults._C.MODEL:
        return
    add_evonorm_config(defaults._C)
    register_digits()
    engine.build_optimizer = solver.build_optimizer

    def resolving(build: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(build, updated=())
        def build_resolved(cfg: Any) -> Any:
            resolve(cfg)
            if cfg.MODEL.META_ARCHITECTURE != name_of[build]:
                return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
            return build(cfg)

        return build_resolved

    name_of = {build: name for name, build in META_ARCH_REGISTRY}
    for build, name in name_of.items():
        META_ARCH_REGISTRY._obj_map[name] = resolving(build)
