"""The loss of every method, by the method's name: functions of arrays, which need neither a config nor a run.

    loss, metrics = losses.simclr(z1, z2, temperature=0.1)

Each loss is a float32 scalar, or float64 for float64 inputs, and JAX can differentiate it. z are outputs of the
projector, p of the predictor, t of the momentum network; 1 and 2 are the two views. Each function comes from the file
of its method in `bt_jax/objectives/`, which has the formula and its source.
"""

from bt_jax.objectives.align_uniform import align_uniform
from bt_jax.objectives.barlow_twins import barlow_twins
from bt_jax.objectives.byol import byol
from bt_jax.objectives.direct_pred import direct_pred
from bt_jax.objectives.drlim import drlim
from bt_jax.objectives.infonce import infonce
from bt_jax.objectives.moco import moco
from bt_jax.objectives.simclr import simclr
from bt_jax.objectives.simsiam import simsiam
from bt_jax.objectives.supervised import supervised
from bt_jax.objectives.vicreg import vicreg

__all__ = [
    "align_uniform",
    "barlow_twins",
    "byol",
    "direct_pred",
    "drlim",
    "infonce",
    "moco",
    "simclr",
    "simsiam",
    "supervised",
    "vicreg",
]
