"""Weighted k-nearest-neighbour classification on frozen features, as in lightly's benchmark (k 200, T 0.1)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax.evals.features import normalise

# Queries a call: 256 x 50,000 similarities are 51 MB, and the whole matrix never exists.
CHUNK = 256


def top1(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    labels: np.ndarray,
    *,
    k: int = 200,
    temperature: float = 0.1,
    num_classes: int,
) -> float:
    """Share of queries whose weighted vote is right.

    Each of the k neighbours nearest in cosine similarity s votes for its class with exp(s / temperature).

    Args:
      bank: (m, d) features of the training images; bank_labels: int (m,).
      queries: (n, d); labels: int (n,).
      k: cut to m where the bank is smaller.
    """
    predicted = predict(bank, bank_labels, queries, k=k, temperature=temperature, num_classes=num_classes)
    return float((predicted == np.asarray(labels)).mean())


def predict(bank, bank_labels, queries, *, k: int, temperature: float, num_classes: int) -> np.ndarray:
    """Classes of the queries, int32 (n,); see `top1`."""
    bank, queries = normalise(bank), np.asarray(normalise(queries))
    bank_labels = jnp.asarray(bank_labels, jnp.int32)
    k = min(k, len(bank))
    found = []
    for start in range(0, len(queries), CHUNK):
        chunk = queries[start : start + CHUNK]
        padded = np.zeros((CHUNK, chunk.shape[1]), np.float32)
        padded[: len(chunk)] = chunk
        votes = _vote(bank, bank_labels, padded, k=k, temperature=temperature, num_classes=num_classes)
        found.append(np.asarray(votes)[: len(chunk)])
    return np.concatenate(found)


@partial(jax.jit, static_argnames=("k", "num_classes"))
def _vote(bank, bank_labels, queries, *, k, temperature, num_classes):
    similarity = jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)
    nearest, index = jax.lax.top_k(similarity, k)
    # exp((s - s_max) / T) is the same vote up to a factor that is common to all classes, and cannot overflow
    weight = jnp.exp((nearest - nearest[:, :1]) / temperature)
    onehot = jax.nn.one_hot(bank_labels[index], num_classes, dtype=weight.dtype)
    return jnp.einsum("nk,nkc->nc", weight, onehot).argmax(axis=1).astype(jnp.int32)
