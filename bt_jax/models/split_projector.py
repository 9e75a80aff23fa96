"""The projector split over devices by feature: no device holds its 151 million parameters (8192^3), or their gradient.

Every device has all rows of its own columns: of each kernel, of the LARS momentum, of the hidden batch statistics and
of z, which is the layout that the loss works in. What travels is activations: the whole input of every layer is
gathered, and on the way back its gradient is summed and scattered, both in the compute dtype.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from bt_jax.messages import UserError
from bt_jax.models import Net


class SplitProjector:
    """A projector whose `apply` gives the same numbers as the whole one's in training, on split parameters.

    Args:
      net: of `models.build_projector`.
      mesh: its one axis splits the last axis of every parameter and statistic, see `sharding.state_sharding`.

    Raises:
      UserError: a width does not divide by the devices.
    """

    def __init__(self, net: Net, mesh: Mesh):
        devices, widths = mesh.devices.size, net.options["widths"]
        if any(width % devices for width in widths):
            raise UserError(
                f"A projector of widths {tuple(widths)} cannot be split over {devices} devices",
                "Set --config.model.projector_sharding=replicated, or widths that divide by the devices.",
            )
        self._net, self._mesh = net, mesh

    def apply(self, variables: Mapping[str, Any], h: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        """h: (n, in_dim), split by row -> z (n, d), split by feature, and the new batch_stats, split too."""
        if not train:
            raise ValueError("A split projector is for training; use the whole one's apply otherwise")
        axis = self._mesh.axis_names[0]
        by_row = PartitionSpec(axis)
        split = jax.tree.map(lambda leaf: PartitionSpec(*[None] * (leaf.ndim - 1), axis), dict(variables))

        @partial(
            jax.shard_map,
            mesh=self._mesh,
            in_specs=(split, by_row),
            out_specs=(PartitionSpec(None, axis), split["batch_stats"]),
        )
        def columns(own, h):
            h = h.astype(jnp.dtype(self._net.options["dtype"]))
            h = jax.lax.all_gather(h, axis, axis=0, tiled=True)
            gather = partial(jax.lax.all_gather, axis_name=axis, axis=1, tiled=True)
            outputs, batch_stats = self._net.stages(own, h, train=True, gather=gather)
            return outputs["features"], batch_stats

        return columns(variables, h)
