"""EvoNorm in Detectron2: `NORM: EvoNormS0`, or a formula, in a stock config.

cfg = get_cfg()
add_evonorm_config(cfg)
cfg.merge_from_file(...)
resolve(cfg)
"""

# First, since with DETECTRON2_ENV_MODULE=evonorm_d2.env it imports the modules of this package.
import detectron2  # noqa: F401  isort: skip

from .config import add_evonorm_config, resolve
from .declare import takes_norm_act
from .lazy import resolve_lazy

__all__ = ["add_evonorm_config", "resolve", "resolve_lazy", "takes_norm_act"]
