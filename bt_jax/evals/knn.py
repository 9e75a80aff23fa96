"""Weighted k-nearest-neighbour classification on frozen features, as in lightly's benchmark (k 200, T 0.1)."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax import compilers
from bt_jax.objectives.functions import unit_rows
from bt_jax.shapes import Float, Int, Int32

# Queries in one call. 256 x 50,000 similarities take 51 MB; the whole matrix is never in memory.
CHUNK = 256


def top1(
    bank: Float[np.ndarray, "m d"],
    bank_labels: Int[np.ndarray, " m"],
    queries: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    k: int = 200,
    temperature: float = 0.1,
    num_classes: int,
) -> float:
    """The accuracy of `predict` for one k and one temperature, a fraction; k is capped at the size of the bank."""
    single = {"ks": (min(k, len(bank)),), "temperatures": (temperature,)}
    predicted = predict(bank, bank_labels, queries, **single, num_classes=num_classes)[0, 0]
    return float((predicted == np.asarray(labels)).mean())


def predict(
    bank: Float[np.ndarray, "m d"],
    bank_labels: Int[np.ndarray, " m"],
    queries: Float[np.ndarray, "n d"],
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    num_classes: int,
) -> Int32[np.ndarray, "ks temperatures n"]:
    """Classifies the queries by a weighted vote, for every k and every temperature.

    Each of the k nearest neighbours has a cosine similarity s and votes for its class with weight exp(s / temperature).

    Args:
      bank: features of the training images, (m, d).
      bank_labels: int (m,).
      queries: (n, d).
      ks: numbers of neighbours, at most m.

    Returns:
      Predicted classes, int32 (len(ks), len(temperatures), n).
    """
    unit_bank, unit_queries = unit_rows(bank), np.asarray(unit_rows(queries))
    labels = jnp.asarray(bank_labels, jnp.int32)
    predicted = []
    for start in range(0, len(unit_queries), CHUNK):
        chunk = unit_queries[start : start + CHUNK]
        padded = np.zeros((CHUNK, chunk.shape[1]), np.float32)
        padded[: len(chunk)] = chunk
        votes = _vote(
            unit_bank, labels, padded, ks=tuple(ks), temperatures=tuple(temperatures), num_classes=num_classes
        )
        predicted.append(np.asarray(votes)[..., : len(chunk)])
    return np.concatenate(predicted, axis=-1)


@partial(compilers.jit, static_argnames=("ks", "temperatures", "num_classes"))
def _vote(bank, bank_labels, queries, *, ks, temperatures, num_classes):
    similarity = jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)
    nearest, index = _top_k(similarity, max(ks))
    neighbours = bank_labels[index]

    def vote(k, temperature):
        # exp((s - s_max) / T) differs from exp(s / T) by a factor common to all classes, and cannot overflow.
        weight = jnp.exp((nearest[:, :k] - nearest[:, :1]) / temperature)
        onehot = jax.nn.one_hot(neighbours[:, :k], num_classes, dtype=weight.dtype)
        return jnp.einsum("nk,nkc->nc", weight, onehot).argmax(axis=1).astype(jnp.int32)

    return jnp.stack([jnp.stack([vote(k, temperature) for temperature in temperatures]) for k in ks])


def _top_k(values, k: int):
    """Computes `lax.top_k` of (n, m) exactly, in a fifth of its time on a CPU.

    The k largest values are in the k blocks with the largest maxima: no other block has a value above those maxima.
    """
    n, m = values.shape
    block = max(math.isqrt(m // k), 1)  # balances the number of blocks, m / block, with the k block candidates
    values = jnp.pad(values, ((0, 0), (0, -m % block)), constant_values=-jnp.inf).reshape(n, -1, block)
    _, blocks = jax.lax.top_k(values.max(axis=2), k)
    candidates = jnp.take_along_axis(values, blocks[..., None], axis=1).reshape(n, -1)
    largest, place = jax.lax.top_k(candidates, k)
    return largest, jnp.take_along_axis(blocks, place // block, axis=1) * block + place % block
