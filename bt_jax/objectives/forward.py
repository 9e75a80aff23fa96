"""The networks of a method, applied to the batch of a step."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bt_jax import sharding

Tree = Any  # nested dicts of arrays


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
        bn_groups: int = 1,
        train: bool = True,
    ) -> list[jax.Array]:
        """Applies one network to every input.

        Args:
          name: "backbone", or one of `Objective.heads`.
          weights: parameters that replace those of the network, such as those of a momentum network. They are not
            trained, and their batch statistics are not stored. With train=False, they use the running statistics of the
            trained network.
          together: inputs of one shape share their batch statistics; otherwise each input has its own.
          bn_groups: number of groups of consecutive rows with batch statistics of their own, as on devices that share
            none. The running statistics are the mean over the groups.
          train: batch norm uses the statistics of the batch; otherwise the running statistics.

        Returns:
          The outputs, one array for each input.
        """
        groups: dict[Any, list[int]] = {}
        for index, x in enumerate(inputs):
            groups.setdefault(x.shape if together else index, []).append(index)
        outputs: dict[int, jax.Array] = {}
        for group in groups.values():
            # The inputs alternate row by row, so that no row leaves its device.
            x = jnp.stack([inputs[index] for index in group], axis=1).reshape(-1, *inputs[group[0]].shape[1:])
            out = self._apply(name, x, weights, train, bn_groups)
            parts = jnp.unstack(out.reshape(-1, len(group), *out.shape[1:]), axis=1)
            outputs |= dict(zip(group, parts, strict=True))
        return [self._by_row(name, outputs[index]) for index in range(len(inputs))]

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
        # If the loss splits features over the devices, the compiler would also split the last layer of the head by
        # feature, and gather the whole input of that layer. This constraint prevents it.
        return jax.lax.with_sharding_constraint(out, sharding.batch_sharding(self._mesh))
