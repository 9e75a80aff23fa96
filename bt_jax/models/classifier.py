"""A linear classifier on the features of a backbone."""

import jax
import jax.numpy as jnp
from flax import nnx


class Classifier(nnx.Module):
    """A linear layer with the initial parameters of the reference's evaluate.py.

    `kernel` (in_dim, classes) is normal with deviation 0.01, `bias` is zero.
    """

    def __init__(self, in_dim: int, classes: int, *, rngs: nnx.Rngs) -> None:
        self.feature_dim = classes
        self.kernel = nnx.Param(0.01 * jax.random.normal(rngs.params(), (in_dim, classes)))
        self.bias = nnx.Param(jnp.zeros(classes))

    def stages(self, h: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """{"features": logits (n, classes)} of h (n, in_dim), in the wider dtype of features and parameters."""
        del train  # the layer has no statistics
        return {"features": h @ self.kernel[...] + self.bias[...]}
