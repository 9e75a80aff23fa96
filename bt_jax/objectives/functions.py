"""Functions of embeddings and predictions that methods, the online probe and evaluators share.

They compute in float32, or in the dtype of the input if it is wider.
"""

import jax
import jax.numpy as jnp

from bt_jax.shapes import Array, Float, Int

Loss = tuple[Float[jax.Array, ""], dict[str, Float[jax.Array, ""]]]  # a loss and its metrics


def unit_rows(z: Float[Array, "n d"], shortest: float = 1e-12) -> Float[jax.Array, "n d"]:
    """The rows scaled to unit length, float32 or wider; rows of zeros remain zero, and their gradient is finite.

    Args:
      shortest: divisor of rows that are shorter. PyTorch's `normalize` has 1e-12, its `cosine_similarity` 1e-8,
        TensorFlow's `l2_normalize` 1e-6.
    """
    z = _wide(z)
    return z / jnp.sqrt(jnp.maximum(jnp.square(z).sum(axis=1, keepdims=True), shortest**2))


def products(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[jax.Array, "n m"]:
    """a b^T, the scalar product of every two rows, in float32 or wider on accelerators too."""
    return jnp.matmul(_wide(a), _wide(b).T, precision=jax.lax.Precision.HIGHEST)


def off_diagonal(scores: Float[Array, "n n"]) -> Float[jax.Array, "n n"]:
    """The scores with -inf on the diagonal, which no softmax sees."""
    return jnp.where(jnp.eye(len(scores), dtype=bool), -jnp.inf, scores)


def contrast(
    positives: Float[Array, " n"], others: Float[Array, "n m"]
) -> tuple[Float[jax.Array, ""], Float[jax.Array, ""]]:
    """Cross-entropy in nats of finding each positive score among itself and the others of its row.

    Returns:
      The mean over rows, and the share of rows whose positive is the largest score.
    """
    logits = jnp.concatenate([positives[:, None], others], axis=1)
    loss = (jax.nn.logsumexp(logits, axis=1) - positives).mean()
    return loss, (positives >= others.max(axis=1)).mean(dtype=jnp.float32)


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
