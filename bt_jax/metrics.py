"""Numbers computed from embeddings and predictions; all return float32 scalars or arrays."""

import jax
import jax.numpy as jnp


def embedding_std(z: jax.Array) -> jax.Array:
    """Spread of the L2-normalised embeddings z (n, d): about 1 when they fill the sphere, 0 when they collapse."""
    z = z.astype(jnp.float32)
    z = z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    return z.std(axis=0).mean() * jnp.sqrt(z.shape[1])


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of logits (n, classes) and int labels (n,), in nats."""
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), labels[:, None], axis=1)
    return -picked.mean()


def top1(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of rows whose largest logit is the label's."""
    return (logits.argmax(axis=1) == labels).mean(dtype=jnp.float32)
