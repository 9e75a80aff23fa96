"""Networks whose outputs are given, for the loss of a method without any network."""

import jax
import jax.numpy as jnp

from bt_jax.objectives.base import Context


class Played:
    """In place of `Forward`. The backbone's outputs are its inputs.

    Args:
      outputs: by head, an array for every input; "momentum NAME" for a head with borrowed weights.
      params: by network.
    """

    def __init__(self, outputs, params=None):
        self._outputs, self.params = outputs, {"backbone": {}, "projector": {}} | (params or {})

    def __call__(self, name, inputs, *, weights=None, **options):
        if name == "backbone":
            return list(inputs)
        outputs = self._outputs[name if weights is None else f"momentum {name}"]
        assert len(outputs) == len(inputs)
        return outputs


def context(step=0, total_steps=10):
    """A context of an unlabelled batch."""
    return Context(jnp.int32(step), total_steps, 1, jnp.arange(1), None, jax.random.key(0))
