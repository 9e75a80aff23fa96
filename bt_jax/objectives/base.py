"""What a method is: networks after the backbone, what it remembers, and a loss.

`Objective` is the whole of it; the other classes are what a loss is given and what it returns.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bt_jax import sharding

if TYPE_CHECKING:  # the self-check computes a loss where JAX alone is installed
    from bt_jax.models import Net

Tree = Any  # nested dicts of arrays

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


class Forward:
    """Applies the networks to the batch of a step, and keeps their new batch statistics.

    Args:
      networks: by name.
      mesh: over which the batch is split.
      split: names of networks whose outputs are split by feature already.

    Attributes:
      params: of all networks, by name; what is trained.
      batch_stats: of all networks, by name, as the calls so far leave them.
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
        """The outputs of one network, an array for every input.

        Args:
          name: "backbone", or one of `Objective.heads`.
          weights: borrowed parameters, such as a momentum network's; they are not trained. Their batch statistics are
            not kept, and with train=False the running ones are the trained network's.
          together: inputs of one shape share a batch of statistics; else each input has its own.
          train: batch norm by the statistics of the batch; else by the running ones.
        """
        groups: dict[Any, list[int]] = {}
        for place, each in enumerate(inputs):
            groups.setdefault(each.shape if together else place, []).append(place)
        outputs: dict[int, jax.Array] = {}
        for places in groups.values():
            x = jnp.concatenate([inputs[place] for place in places]) if len(places) > 1 else inputs[places[0]]
            out = self._apply(name, x, weights, train)
            parts = jnp.split(out, len(places)) if len(places) > 1 else [out]
            outputs |= dict(zip(places, parts, strict=True))
        return [self._by_row(name, outputs[place]) for place in range(len(inputs))]

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
        # Without it, where the loss splits features over the devices, the compiler also splits the head's last layer by
        # feature, and gathers its whole input.
        return jax.lax.with_sharding_constraint(out, sharding.batch_sharding(self._mesh))


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
    """

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    metrics: ClassVar[Mapping[str, Metric]] = {}
    unit_rows: ClassVar[Sequence[str]] = ()
    frozen_epochs: ClassVar[Mapping[str, float]] = {}
    constant_rate: ClassVar[Sequence[str]] = ()

    def heads(self, model: Any, feature_dim: int) -> "dict[str, Net]":
        """The trained networks after the backbone, by name. By default the projector of the config.

        If one is called "projector", the report has the cross-correlation of its outputs.

        Args:
          model: the section `config.model`.
        """
        from bt_jax import models

        options = {"bias": model.projector_bias, "dtype": jnp.dtype(model.dtype)}
        return {"projector": models.build_projector(feature_dim, tuple(model.projector), **options)}

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


def settle(old: Tree, new: Tree, finite: jax.Array) -> Tree:
    """The memory after a step: `new`, or `old` where the step was not finite. Of `Rows`, only these are written."""

    def one(new, old):
        if isinstance(new, Rows):
            return old.at[new.at].set(jnp.where(finite, new.values, old[new.at]))
        return jnp.where(finite, new, old)

    return jax.tree.map(one, new, old, is_leaf=lambda each: isinstance(each, Rows))
