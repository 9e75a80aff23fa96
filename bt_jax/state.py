"""What training carries from step to step: one pytree of plain dicts."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import optax

from bt_jax.models import Net, Tree


class Nets(NamedTuple):
    """The networks of a method.

    Attributes:
      heads: those after the backbone, by name: projector, predictor, prototypes, classifier.
    """

    backbone: Net
    heads: Mapping[str, Net]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run is at one step.

    Attributes:
      step: int32, steps taken; the schedule, the order of the data and all randomness are functions of it.
      params: {"backbone", the heads by name, "probe" if there is an online probe}, float32.
      batch_stats: {"backbone", the heads by name}, running means and variances, float32.
      opt_state: of the optax transformation, over the trained params.
      bad_steps: int32, steps in a row that were skipped because the loss or the gradient was not finite.
      memory: the method's own state, see `objectives.base.Objective.init_memory`; {} for most methods.
    """

    step: jax.Array
    params: dict[str, Tree]
    batch_stats: dict[str, Tree]
    opt_state: optax.OptState
    bad_steps: jax.Array
    memory: Tree = dataclasses.field(default_factory=dict)

    def encoder(self) -> dict[str, Tree]:
        """The backbone's variables, as `Net.apply` takes them."""
        return self.network("backbone")

    def network(self, name: str) -> dict[str, Tree]:
        """The variables of one network, as `Net.apply` takes them."""
        return {"params": self.params[name], "batch_stats": self.batch_stats[name]}
