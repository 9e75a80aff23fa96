"""The projector, split over the devices by feature. No device has all 151 million parameters (8192^3) or gradients.

Every device has some columns, with all their rows, of each kernel, of the LARS momentum, of the hidden batch statistics
and of z. The loss uses the same layout. The devices exchange activations alone, in the compute dtype: they gather the
input of every layer, and sum and scatter its gradient in the backward pass.
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
    """A projector with split parameters, whose `apply` computes the same as that of `net` in training.

    Args:
      net: of `models.build_projector`.
      mesh: its one axis splits the last axis of every parameter and statistic; see `sharding.state_sharding`.

    Raises:
      UserError: a width is not divisible by the number of devices.
    """

    def __init__(self, net: Net, mesh: Mesh):
        devices, widths = mesh.devices.size, net.options["widths"]
        if any(width % devices for width in widths):
            raise UserError(
                f"A projector of widths {tuple(widths)} cannot be split over {devices} devices",
                f"Set --config.model.projector_sharding=replicated, or widths that are multiples of {devices}.",
            )
        self._net, self._mesh = net, mesh

    def apply(self, variables: Mapping[str, Any], h: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        """Maps h (n, in_dim), split by row, to (z (n, d), new batch_stats), both split by feature.

        Raises:
          ValueError: `train` is False.
        """
        if not train:
            raise ValueError("A split projector is for training alone; use the apply method of its net")
        axis = self._mesh.axis_names[0]
        by_row = PartitionSpec(axis)
        split = jax.tree.map(lambda leaf: PartitionSpec(*[None] * (leaf.ndim - 1), axis), dict(variables))

        @partial(
            jax.shard_map,
            mesh=self._mesh,
            in_specs=(split, by_row),
            out_specs=(PartitionSpec(None, axis), split["batch_stats"]),
        )
        def columns(variables, h):
            h = h.astype(jnp.dtype(self._net.options["dtype"]))
            h = jax.lax.all_gather(h, axis, axis=0, tiled=True)
            gather = partial(jax.lax.all_gather, axis_name=axis, axis=1, tiled=True)
            outputs, batch_stats = self._net.stages(variables, h, train=True, gather=gather)
            return outputs["features"], batch_stats

        return columns(variables, h)
