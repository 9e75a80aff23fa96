"""Functions of embeddings and predictions that methods, the online probe and evaluators share.

They compute in float32, or in the dtype of the input if it is wider.
"""

import jax
import jax.numpy as jnp

from bt_jax.messages import UserError
from bt_jax.shapes import Array, Float, Int

Loss = tuple[Float[jax.Array, ""], dict[str, Float[jax.Array, ""]]]  # a loss and its metrics


def check_embeddings(least: int = 2, /, **embeddings: Array) -> None:
    """Checks the inputs of a loss: floating-point arrays (n, d) of one shape, with `least` or more rows.

    Raises:
      UserError: an array is of another kind; the message has its name.
    """
    first = next(iter(embeddings))
    for name, z in embeddings.items():
        if not hasattr(z, "dtype"):
            raise UserError(f"{name} is a {type(z).__name__}, not an array", f"Convert it: jnp.asarray({name}).")
        if not jnp.issubdtype(z.dtype, jnp.floating):
            raise UserError(
                f"{name} is {z.dtype}, but a loss needs floating-point numbers",
                f'Convert it: {name}.astype("float32").',
            )
        if z.ndim != 2:
            raise UserError(f"{name} has the shape {z.shape}, not (n, d)", "Pass one row for each image.")
        if z.shape != embeddings[first].shape:
            raise UserError(
                f"{first} has the shape {embeddings[first].shape}, but {name} has {z.shape}",
                "Pass arrays of one shape.",
            )
        if len(z) < least:
            raise UserError(
                f"{name} has the shape {z.shape}, but this loss compares the images of a batch",
                f"Pass {least} rows or more.",
            )


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
