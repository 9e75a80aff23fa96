"""Functions of embeddings and predictions, against values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bt_jax.objectives import functions
from bt_jax.state import TrainState
from bt_jax.train import optimizer


def test_metrics_by_hand():
    """Images without a label, -1, do not count: neither as correct nor as wrong."""
    logits = np.array([[3.0, 1, 0], [0, 2, 1], [0, 1, 2], [5, 0, 0]], np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    top1, cross_entropy = jax.jit(functions.top1), jax.jit(functions.cross_entropy)
    labels = np.array([0, 1, 1, -1])
    np.testing.assert_allclose(top1(logits, labels), 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(logits, labels), -np.log(shares[[0, 1, 2], [0, 1, 1]]).mean(), rtol=1e-6)
    unlabelled = np.full(4, -1)
    assert float(top1(logits, unlabelled)) == float(cross_entropy(logits, unlabelled)) == 0


def test_spread_of_the_embedding():
    """It is about 1 if the embeddings fill the sphere, of any dimension, and 0 if they have one direction."""
    spread = jax.jit(functions.embedding_std)
    for width in (16, 64):
        z = np.random.default_rng(0).standard_normal((1000, width)).astype(np.float32)
        np.testing.assert_allclose(spread(z), 1, atol=0.02)
    np.testing.assert_allclose(spread(np.arange(1, 1001)[:, None] * np.ones((1, 64), np.float32)), 0, atol=1e-4)


def test_the_gradient_norm_excludes_the_probe():
    """The gradient of the probe can be much larger than those of the networks."""
    params = {"backbone": jnp.zeros(1), "projector": jnp.zeros(1), "probe": jnp.zeros(1)}
    tx = optax.sgd(1.0)
    state = TrainState(jnp.int32(0), params, {}, tx.init(params), jnp.int32(0))
    grads = {"backbone": jnp.array([3.0]), "projector": jnp.array([4.0]), "probe": jnp.array([100.0])}
    new, norm, _ = optimizer.apply_gradient(state, tx, grads, {}, jnp.float32(1.0))
    assert float(norm) == 5 and float(new.params["probe"][0]) == -100 and int(new.step) == 1
