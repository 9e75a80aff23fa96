"""The interface of methods: their networks after the backbone, their memory, and their loss.

`Objective` is a method, and `Metric` has the texts of a metric. The other classes are an argument of the loss, and its
result.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from bt_jax.messages import UserError
from bt_jax.objectives.forward import Forward, Tree

if TYPE_CHECKING:  # the self-check imports this file and needs JAX alone
    from bt_jax.models import Net

RESERVED = ("backbone", "probe", "encoder", "train", "model", "memory")  # a head cannot have these names


class Metric(NamedTuple):
    """The texts of a metric in the report. The log has the metric as train/NAME.

    Attributes:
      label: of its curve.
      caption: below its plot: the meaning of high and low values.
      term: whether it is a term of the loss; the progress line shows terms too.
      warning: (limit, sentence with a placeholder for the value). If the last value is below the limit, the report
        starts with the sentence.
    """

    label: str
    caption: str
    term: bool = False
    warning: tuple[float, str] | None = None


class Context(NamedTuple):
    """Arguments of a loss besides the views, the networks and the memory.

    Attributes:
      step: int32, number of the step, from 0.
      total_steps, steps_per_epoch: int, of the whole schedule.
      rows: int32 (n,), positions of the batch's images among the training images.
      labels: int32 (n,), or None.
      key: random key of the step.
    """

    step: jax.Array
    total_steps: int
    steps_per_epoch: int
    rows: jax.Array
    labels: jax.Array | None
    key: jax.Array


class Rows(NamedTuple):
    """An update of some rows of an array in the memory. A loss returns it in place of the array.

    Attributes:
      at: int32 (k,), indices of the rows.
      values: (k, ...), their new values.
    """

    at: jax.Array
    values: jax.Array


class Outcome(NamedTuple):
    """The result of a loss.

    Attributes:
      features: outputs of the backbone (n, feature_dim), one array for each view; the online probe trains on them.
      metrics: scalars by name. `Objective.metrics` has their texts; the report has that of "embedding_std".
      memory: for the next step, of the same structure. `Rows` can replace an array.
    """

    loss: jax.Array
    features: Sequence[jax.Array]
    metrics: Mapping[str, jax.Array] = {}
    memory: Tree = {}


@dataclasses.dataclass(frozen=True)
class Objective:
    """A method: a frozen dataclass. Its fields are the keys of `config.objective`, each with a plain default.

    The trainer sets a field `mesh` to the devices, and a field `classes` to the number of classes of the data set, if
    the method has such a field. Formulas are those of the global batch.

    Attributes:
      title: name of the method, for the report and for model cards.
      paper: authors, title and link, for model cards.
      metrics: texts of `Outcome.metrics`, for the report and the progress line.
      unit_rows: heads whose kernels have length 1 for every output, such as the prototypes of SwAV.
      frozen_epochs: by head, number of epochs at the start without any update: no step, no momentum, no decay.
      constant_rate: heads whose learning rate has no schedule, such as the predictor of SimSiam.
      model: keys of `config.model` that `:method=NAME` of a recipe sets, with the values of the official code.
      positive, fractions: keys that must be above 0, or from 0 to 1; no number is negative or infinite.
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
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            key = f"config.objective.{field.name}"
            if field.name in self.positive and not value > 0:
                raise UserError(f"{key}={value} must be positive", f"Set --{key} to a positive number.")
            if field.name in self.fractions and not 0 <= value <= 1:
                raise UserError(f"{key}={value} is not between 0 and 1", f"Set --{key} to a number from 0 to 1.")
            if not 0 <= value < math.inf:
                problem = "must not be negative" if value < 0 else "is not finite"
                raise UserError(f"{key}={value} {problem}", f"Set --{key} to 0 or more.")

    def check_batch(self, batch: int) -> None:
        """Raises UserError if the method cannot train on batches of `batch` images; no method can on single images."""
        if batch < 2:
            raise UserError(f"config.batch_size={batch} leaves no other image to compare", "Set --config.batch_size=2.")

    def heads(self, model: Any, feature_dim: int) -> "dict[str, Net]":
        """The trained networks after the backbone, by name. The default is the projector of the config.

        If one is called "projector", the report has the cross-correlation of its outputs.

        Args:
          model: the section `config.model`.
          feature_dim: number of features of the backbone.
        """
        return {"projector": build_head(model, feature_dim, model.projector)}

    def init_memory(self, key: jax.Array, params: Mapping[str, Tree], images: int) -> Tree:
        """The initial memory: state that is saved but not trained, such as momentum networks, queues and banks.

        Args:
          key: random key of the initial state.
          params: initial parameters of all networks, by name.
          images: number of training images, rounded up to a multiple of 1024. An array with this number of rows is
            split over the devices, if it is divisible by their number. Every device has a copy of every other array.
        """
        del key, params, images
        return {}

    def loss(self, run: Forward, views: Sequence[jax.Array], memory: Tree, context: Context) -> Outcome:
        """The loss of one batch, a pure function.

        Args:
          run: applies the networks.
          views: normalised images, (n, h, w, c) each.
          memory: result of the last step, or of `init_memory`.
        """
        raise NotImplementedError


def build_head(model: Any, in_dim: int, widths: Sequence[int], **options: Any) -> "Net":
    """Builds a head by `models.build_projector`, with the dtype and the biases of the config's projector.

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


def memory_after_step(old: Tree, new: Tree, finite: jax.Array) -> Tree:
    """The memory after a step: `new` if the step was finite, `old` otherwise. For `Rows`, only their rows change."""

    def update(new, old):
        if isinstance(new, Rows):
            return old.at[new.at].set(jnp.where(finite, new.values, old[new.at]))
        return jnp.where(finite, new, old)

    return jax.tree.map(update, new, old, is_leaf=lambda leaf: isinstance(leaf, Rows))
