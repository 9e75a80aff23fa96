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

# Queries a call: 256 x 50,000 similarities are 51 MB, and the whole matrix never exists.
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
    """Share of queries whose weighted vote is right; see `predict`, here for one k, cut to m, and one temperature."""
    lists = {"ks": (min(k, len(bank)),), "temperatures": (temperature,)}
    predicted = predict(bank, bank_labels, queries, **lists, num_classes=num_classes)[0, 0]
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
    """Classes of the queries for every k and temperature, all in one pass.

    Each of the k neighbours nearest in cosine similarity s votes for its class with exp(s / temperature).

    Args:
      bank: (m, d) features of the training images; bank_labels: int (m,).
      queries: (n, d).
      ks: each at most m.

    Returns:
      int32 (len(ks), len(temperatures), n).
    """
    unit, asked = unit_rows(bank), np.asarray(unit_rows(queries))
    unit_labels = jnp.asarray(bank_labels, jnp.int32)
    found = []
    for start in range(0, len(asked), CHUNK):
        chunk = asked[start : start + CHUNK]
        padded = np.zeros((CHUNK, chunk.shape[1]), np.float32)
        padded[: len(chunk)] = chunk
        votes = _vote(
            unit, unit_labels, padded, ks=tuple(ks), temperatures=tuple(temperatures), num_classes=num_classes
        )
        found.append(np.asarray(votes)[..., : len(chunk)])
    return np.concatenate(found, axis=-1)


@partial(compilers.jit, static_argnames=("ks", "temperatures", "num_classes"))
def _vote(bank, bank_labels, queries, *, ks, temperatures, num_classes):
    similarity = jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)
    nearest, index = _top_k(similarity, max(ks))
    neighbours = bank_labels[index]

    def vote(k, temperature):
        # exp((s - s_max) / T) is the same vote up to a factor that is common to all classes, and cannot overflow
        weight = jnp.exp((nearest[:, :k] - nearest[:, :1]) / temperature)
        onehot = jax.nn.one_hot(neighbours[:, :k], num_classes, dtype=weight.dtype)
        return jnp.einsum("nk,nkc->nc", weight, onehot).argmax(axis=1).astype(jnp.int32)

    return jnp.stack([jnp.stack([vote(k, temperature) for temperature in temperatures]) for k in ks])


def _top_k(values, k: int):
    """As `lax.top_k` of (n, m), exactly, in a fifth of the time on a CPU.

    The k largest lie in the k blocks of largest maxima: a block that is not among these has k maxima before it.
    """
    n, m = values.shape
    block = max(math.isqrt(m // k), 1)  # balances the blocks to choose from, m / block, with the rest, k block
    values = jnp.pad(values, ((0, 0), (0, -m % block)), constant_values=-jnp.inf).reshape(n, -1, block)
    _, blocks = jax.lax.top_k(values.max(axis=2), k)
    candidates = jnp.take_along_axis(values, blocks[..., None], axis=1).reshape(n, -1)
    largest, place = jax.lax.top_k(candidates, k)
    return largest, jnp.take_along_axis(blocks, place // block, axis=1) * block + place % block
