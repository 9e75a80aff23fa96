"""The interface of methods: their networks after the backbone, their memory, and their loss.

`Objective` is a method. The other classes are the arguments of its loss, and the loss's result.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bt_jax import sharding

if TYPE_CHECKING:  # the self-check imports this file and needs JAX alone
    from bt_jax.models import Net

Tree = Any  # nested dicts of arrays

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
      metrics: scalars by name, which `Objective.metrics` explains.
      memory: for the next step, of the same structure. `Rows` can replace an array.
    """

    loss: jax.Array
    features: Sequence[jax.Array]
    metrics: Mapping[str, jax.Array] = {}
    memory: Tree = {}


class Forward:
    """Applies the networks to the batch of a step, and stores their new batch statistics.

    Args:
      networks: by name.
      mesh: that splits the batch.
      split: names of networks with outputs that are split by feature.

    Attributes:
      params: trained parameters of all networks, by name.
      batch_stats: statistics of all networks, by name, after the calls so far.
    """

    def __init__(
        self,
        networks: Mapping[str, Any],
        params: Mapping[str, Tree],
        batch_stats: Mapping[str, Tree],
        *,
        mesh: Mesh | None = None,
        split: Sequence[str] = (),
    ) -> None:
        self._networks, self._mesh, self._split = networks, mesh, split
        self.params, self.batch_stats = params, dict(batch_stats)

    def __call__(
        self,
        name: str,
        inputs: Sequence[jax.Array],
        *,
        weights: Tree | None = None,
        together: bool = False,
        train: bool = True,
    ) -> list[jax.Array]:
        """Applies one network to every input.

        Args:
          name: "backbone", or one of `Objective.heads`.
          weights: parameters that replace those of the network, such as those of a momentum network. They are not
            trained, and their batch statistics are not stored. With train=False, they use the running statistics of the
            trained network.
          together: inputs of one shape share their batch statistics; otherwise each input has its own.
          train: batch norm uses the statistics of the batch; otherwise the running statistics.

        Returns:
          The outputs, one array for each input.
        """
        groups: dict[Any, list[int]] = {}
        for index, x in enumerate(inputs):
            groups.setdefault(x.shape if together else index, []).append(index)
        outputs: dict[int, jax.Array] = {}
        for group in groups.values():
            x = jnp.concatenate([inputs[index] for index in group]) if len(group) > 1 else inputs[group[0]]
            out = self._apply(name, x, weights, train)
            parts = jnp.split(out, len(group)) if len(group) > 1 else [out]
            outputs |= dict(zip(group, parts, strict=True))
        return [self._by_row(name, outputs[index]) for index in range(len(inputs))]

    def _apply(self, name: str, x: jax.Array, weights: Tree | None, train: bool) -> jax.Array:
        params = self.params[name] if weights is None else jax.lax.stop_gradient(weights)
        variables = {"params": params, "batch_stats": self.batch_stats[name]}
        if not train:
            return self._networks[name].apply(variables, x, train=False)
        out, stats = self._networks[name].apply(variables, x, train=True)
        if weights is None:
            self.batch_stats[name] = stats
        return out

    def _by_row(self, name: str, out: jax.Array) -> jax.Array:
        if self._mesh is None or name == "backbone" or name in self._split:
            return out
        # If the loss splits features over the devices, the compiler would also split the last layer of the head by
        # feature, and gather the whole input of that layer. This constraint prevents it.
        return jax.lax.with_sharding_constraint(out, sharding.batch_sharding(self._mesh))


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
    """

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    metrics: ClassVar[Mapping[str, Metric]] = {}
    unit_rows: ClassVar[Sequence[str]] = ()
    frozen_epochs: ClassVar[Mapping[str, float]] = {}
    constant_rate: ClassVar[Sequence[str]] = ()

    def heads(self, model: Any, feature_dim: int) -> "dict[str, Net]":
        """The trained networks after the backbone, by name. The default is the projector of the config.

        If one is called "projector", the report has the cross-correlation of its outputs.

        Args:
          model: the section `config.model`.
          feature_dim: number of features of the backbone.
        """
        from bt_jax import models

        options = {"bias": model.projector_bias, "dtype": jnp.dtype(model.dtype)}
        return {"projector": models.build_projector(feature_dim, tuple(model.projector), **options)}

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


def memory_after_step(old: Tree, new: Tree, finite: jax.Array) -> Tree:
    """The memory after a step: `new` if the step was finite, `old` otherwise. For `Rows`, only their rows change."""

    def update(new, old):
        if isinstance(new, Rows):
            return old.at[new.at].set(jnp.where(finite, new.values, old[new.at]))
        return jnp.where(finite, new, old)

    return jax.tree.map(update, new, old, is_leaf=lambda leaf: isinstance(leaf, Rows))
