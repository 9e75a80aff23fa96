"""Functions of embeddings and predictions that methods, the online probe and evaluators share.

They compute in float32, or in the dtype of the input if it is wider.
"""

import jax
import jax.numpy as jnp

from bt_jax.shapes import Array, Float, Int


def unit_rows(z: Float[Array, "n d"]) -> Float[jax.Array, "n d"]:
    """The rows scaled to unit length, float32 or wider; rows of zeros remain zero."""
    z = _wide(z)
    return z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)


def embedding_std(z: Float[Array, "n d"]) -> Float[jax.Array, ""]:
    """The spread of L2-normalised embeddings z (n, d): about 1 if they fill the sphere, 0 if they have collapsed."""
    return unit_rows(z).std(axis=0).mean() * jnp.sqrt(z.shape[1])


def cross_entropy(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[jax.Array, ""]:
    """The mean cross-entropy of logits (n, classes) and int labels (n,), in nats; rows with label -1 do not count."""
    import optax  # not at the top: the self-check imports this file and needs JAX alone

    known = labels >= 0
    values = optax.softmax_cross_entropy_with_integer_labels(_wide(logits), jnp.maximum(labels, 0))
    return jnp.where(known, values, 0).sum() / jnp.maximum(known.sum(), 1).astype(values.dtype)


def top1(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[jax.Array, ""]:
    """The share of rows whose largest logit is that of the label; rows with label -1 do not count."""
    correct = (logits.argmax(axis=1) == labels).sum(dtype=jnp.float32)
    return correct / jnp.maximum((labels >= 0).sum(), 1).astype(jnp.float32)


def _wide(x: Array) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
