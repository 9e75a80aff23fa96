"""What a method is: networks after the backbone, what it remembers, and a loss.

`Objective` is the whole of it; the other classes are what a loss is given and what it returns.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from bt_jax.messages import UserError
from bt_jax.objectives.forward import Forward, Tree

if TYPE_CHECKING:  # the self-check computes a loss where JAX alone is installed
    from bt_jax.models import Net

RESERVED = ("backbone", "probe", "encoder", "train", "model", "memory")  # names that no head can have


class Metric(NamedTuple):
    """How a metric of a method is named and explained in the report; the log has it as train/NAME.

    Attributes:
      label: beside its curve.
      caption: what to look for.
      term: a term of the loss, which the progress line shows as well.
      warning: (limit, sentence with a place for the value): the report opens with it if the last value is lower.
    """

    label: str
    caption: str
    term: bool = False
    warning: tuple[float, str] | None = None


class Context(NamedTuple):
    """What a loss may depend on besides the views, the networks and the memory.

    Attributes:
      step: int32, steps taken before this one.
      total_steps, steps_per_epoch: int, of the whole schedule.
      rows: int32 (n,), the positions of the batch's images among the training images.
      labels: int32 (n,), or None.
      key: random, of this step.
    """

    step: jax.Array
    total_steps: int
    steps_per_epoch: int
    rows: jax.Array
    labels: jax.Array | None
    key: jax.Array


class Rows(NamedTuple):
    """Returned in place of an array of the memory: only these of its rows change in this step.

    Attributes:
      at: int32 (k,), which rows.
      values: (k, ...), what they become.
    """

    at: jax.Array
    values: jax.Array


class Outcome(NamedTuple):
    """What a loss returns.

    Attributes:
      features: the backbone's outputs (n, feature_dim), one for each view; the online probe trains on them.
      metrics: scalars by name; `Objective.metrics` explains them.
      memory: for the next step, of the structure it was given; arrays, or `Rows` of them.
    """

    loss: jax.Array
    features: Sequence[jax.Array]
    metrics: Mapping[str, jax.Array] = {}
    memory: Tree = {}


@dataclasses.dataclass(frozen=True)
class Objective:
    """A method: a frozen dataclass whose fields are the keys of `config.objective`, each with a plain default.

    The trainer sets a field `mesh`, if there is one, to the devices, and a field `classes` to the number of classes of
    the data set. The formulas are written for the global batch.

    Attributes:
      title, paper: of the method, for the report and for model cards: "Barlow Twins", and its authors, title, link.
      metrics: names and captions of `Outcome.metrics`, for the report and the progress line.
      unit_rows: heads whose kernels keep length 1 for every output, as the prototypes of SwAV.
      frozen_epochs: by head, epochs at the start in which the optimizer leaves it alone, momentum and decay included.
      constant_rate: heads whose learning rate has no schedule, as the predictor of SimSiam.
      model: the keys of `config.model` that the official code has; `:method=NAME` of a recipe sets them.
      positive, fractions: keys that must be above 0, or from 0 to 1.
    """

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    metrics: ClassVar[Mapping[str, Metric]] = {}
    unit_rows: ClassVar[Sequence[str]] = ()
    frozen_epochs: ClassVar[Mapping[str, float]] = {}
    constant_rate: ClassVar[Sequence[str]] = ()
    model: ClassVar[Mapping[str, Any]] = {}
    positive: ClassVar[Sequence[str]] = ()
    fractions: ClassVar[Sequence[str]] = ()

    def __post_init__(self) -> None:
        for name in self.positive:
            if not getattr(self, name) > 0:
                cause = f"config.objective.{name}={getattr(self, name)} must be positive"
                raise UserError(cause, f"Set --config.objective.{name} to a positive number.")
        for name in self.fractions:
            if not 0 <= getattr(self, name) <= 1:
                cause = f"config.objective.{name}={getattr(self, name)} is not between 0 and 1"
                raise UserError(cause, f"Set --config.objective.{name} to a number from 0 to 1.")

    def heads(self, model: Any, feature_dim: int) -> "dict[str, Net]":
        """The trained networks after the backbone, by name. By default the projector of the config.

        If one is called "projector", the report has the cross-correlation of its outputs.

        Args:
          model: the section `config.model`.
        """
        return {"projector": build_head(model, feature_dim, model.projector)}

    def init_memory(self, key: jax.Array, params: Mapping[str, Tree], images: int) -> Tree:
        """The state that a method carries and saves but does not train: momentum networks, queues, banks.

        Args:
          params: of all networks at the start, by name.
          images: number of training images, rounded up to a multiple of 1024. The devices share the rows of an array
            that has so many, if they divide it; every other array is whole on each of them.
        """
        del key, params, images
        return {}

    def loss(self, run: Forward, views: Sequence[jax.Array], memory: Tree, context: Context) -> Outcome:
        """The loss of one batch; pure.

        Args:
          views: (n, h, w, c) each, normalised.
        """
        raise NotImplementedError


def build_head(model: Any, in_dim: int, widths: Sequence[int], **options: Any) -> "Net":
    """A head of `models.build_projector` in the dtype of the config, with biases if the config's projector has them.

    Args:
      model: the section `config.model`.
      options: of `models.build_projector`.
    """
    from bt_jax import models

    return models.build_projector(
        in_dim, tuple(widths), **{"bias": model.projector_bias, "dtype": jnp.dtype(model.dtype)} | options
    )


def output_width(head: Tree) -> int:
    """The number of outputs of a head of `build_head`, from its parameters."""
    last = max((name for name in head if name.startswith("fc")), key=lambda name: int(name[2:]))
    return head[last]["kernel"].shape[1]


def settle(old: Tree, new: Tree, finite: jax.Array) -> Tree:
    """The memory after a step: `new`, or `old` where the step was not finite. Of `Rows`, only these are written."""

    def one(new, old):
        if isinstance(new, Rows):
            return old.at[new.at].set(jnp.where(finite, new.values, old[new.at]))
        return jnp.where(finite, new, old)

    return jax.tree.map(one, new, old, is_leaf=lambda each: isinstance(each, Rows))
