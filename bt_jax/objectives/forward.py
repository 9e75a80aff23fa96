"""How a method applies its networks to the batch of a step."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bt_jax import sharding

Tree = Any  # nested dicts of arrays


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
        bn_groups: int = 1,
        train: bool = True,
    ) -> list[jax.Array]:
        """The outputs of one network, an array for every input.

        Args:
          name: "backbone", or one of `Objective.heads`.
          weights: borrowed parameters, such as a momentum network's; they are not trained. Their batch statistics are
            not kept, and with train=False the running ones are the trained network's.
          together: inputs of one shape share a batch of statistics; else each input has its own.
          bn_groups: batch norm by the statistics of so many groups of consecutive rows, as on devices that share none;
            the running statistics are the mean over the groups.
          train: batch norm by the statistics of the batch; else by the running ones.
        """
        groups: dict[Any, list[int]] = {}
        for place, each in enumerate(inputs):
            groups.setdefault(each.shape if together else place, []).append(place)
        outputs: dict[int, jax.Array] = {}
        for places in groups.values():
            # One after another image by image, so that no row leaves its device.
            x = jnp.stack([inputs[place] for place in places], axis=1).reshape(-1, *inputs[places[0]].shape[1:])
            out = self._apply(name, x, weights, train, bn_groups)
            parts = jnp.unstack(out.reshape(-1, len(places), *out.shape[1:]), axis=1)
            outputs |= dict(zip(places, parts, strict=True))
        return [self._by_row(name, outputs[place]) for place in range(len(inputs))]

    def _apply(self, name: str, x: jax.Array, weights: Tree | None, train: bool, bn_groups: int) -> jax.Array:
        params = self.params[name] if weights is None else jax.lax.stop_gradient(weights)
        variables = {"params": params, "batch_stats": self.batch_stats[name]}
        if not train:
            return self._networks[name].apply(variables, x, train=False)
        apply = functools.partial(self._networks[name].apply, variables, train=True)
        if bn_groups == 1:
            out, stats = apply(x)
        else:
            out, stats = jax.vmap(apply)(x.reshape(bn_groups, len(x) // bn_groups, *x.shape[1:]))
            out = out.reshape(len(x), *out.shape[2:])
            stats = jax.tree.map(lambda each: each.mean(axis=0), stats)
        if weights is None:
            self.batch_stats[name] = stats
        return out

    def _by_row(self, name: str, out: jax.Array) -> jax.Array:
        if self._mesh is None or name == "backbone" or name in self._split:
            return out
        # Without it, where the loss splits features over the devices, the compiler also splits the head's last layer by
        # feature, and gathers its whole input.
        return jax.lax.with_sharding_constraint(out, sharding.batch_sharding(self._mesh))
