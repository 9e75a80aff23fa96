"""The state of training, which every step updates: one pytree of plain dicts."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import optax

from bt_jax.models import Net, Tree


class Nets(NamedTuple):
    """The networks of a method.

    Attributes:
      heads: the networks after the backbone, by name: projector, predictor, prototypes, classifier.
    """

    backbone: Net
    heads: Mapping[str, Net]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The whole state of a run at one step.

    Attributes:
      step: int32, number of steps taken; schedule, order of the data and all randomness are functions of it.
      params: {"backbone", the heads by name, "probe" if there is an online probe}, float32.
      batch_stats: {"backbone", the heads by name}, running means and variances, float32.
      opt_state: state of the optax transformation, for the trained params.
      bad_steps: int32, number of successive steps that were skipped because loss or gradient was not finite.
      memory: state of the method, see `objectives.base.Objective.init_memory`; {} for most methods.
    """

    step: jax.Array
    params: dict[str, Tree]
    batch_stats: dict[str, Tree]
    opt_state: optax.OptState
    bad_steps: jax.Array
    memory: Tree = dataclasses.field(default_factory=dict)

    def encoder(self) -> dict[str, Tree]:
        """The variables of the backbone, for `Net.apply`."""
        return self.network("backbone")

    def network(self, name: str) -> dict[str, Tree]:
        """The variables of one network, for `Net.apply`."""
        return {"params": self.params[name], "batch_stats": self.batch_stats[name]}
