"""A linear classifier on the features of a backbone."""

import jax
import jax.numpy as jnp
from flax import nnx


class Classifier(nnx.Module):
    """Parameters `kernel` (in_dim, classes), drawn from N(0, 0.01), and `bias`, zeros: the reference's evaluate.py."""

    def __init__(self, in_dim: int, classes: int, *, rngs: nnx.Rngs) -> None:
        self.feature_dim = classes
        self.kernel = nnx.Param(0.01 * jax.random.normal(rngs.params(), (in_dim, classes)))
        self.bias = nnx.Param(jnp.zeros(classes))

    def stages(self, h: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """h: (n, in_dim) -> "features": the logits (n, classes), of the wider dtype of features and parameters."""
        del train  # it has no statistics
        return {"features": h @ self.kernel[...] + self.bias[...]}
