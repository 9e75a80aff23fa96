"""Linear probe on cached features: many learning rates and weight decays trained at once, one chosen on held-out train.

All heads see the same minibatches, so that training them is one batched matrix product. The test images choose nothing.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax import compilers
from bt_jax.shapes import Float, Int

LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
WEIGHT_DECAYS = (0.0, 1e-4, 1e-2)
MOMENTUM = 0.9  # as the reference's linear evaluation (evaluate.py)
BATCH = 256
HELD_OUT = 0.1  # share of train on which the head is chosen


class Probe(NamedTuple):
    """A fitted linear classifier and how it was chosen.

    Attributes:
      predicted: int32 (n,), classes of the test features.
      rate, decay: the chosen pair.
      held_out_top1: float32 (rates, decays), accuracy of every pair on the held-out part of train.
    """

    predicted: np.ndarray
    rate: float
    decay: float
    held_out_top1: np.ndarray


def top1(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    test_features: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, " m"],
    *,
    num_classes: int,
    epochs: int = 30,
    seed: int = 0,
) -> float:
    """Top-1 accuracy of `fit` on test; test_labels int (m,)."""
    found = fit(features, labels, test_features, num_classes=num_classes, epochs=epochs, seed=seed)
    return float((found.predicted == np.asarray(test_labels)).mean())


def fit(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    test_features: Float[np.ndarray, "m d"],
    *,
    num_classes: int,
    epochs: int = 30,
    seed: int = 0,
) -> Probe:
    """Chooses rate and decay on a held-out tenth of train, fits once more on all of it, and classifies test.

    Features are standardised by the training set's mean and deviation, which lets one grid of rates serve features of
    any scale. SGD with momentum, cosine to zero.

    Args:
      features: (n, d) float; labels: int (n,). test_features: (m, d).
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    mean, std = features.mean(axis=0), features.std(axis=0)
    scale = 1 / np.maximum(std, 1e-3 * std.mean() + 1e-12)  # a dead feature stays small
    order = np.random.default_rng(seed).permutation(len(features))
    held = max(int(HELD_OUT * len(features)), 1)
    chosen_on, trained_on = order[:held], order[held:]
    x, y, key = jnp.asarray((features - mean) * scale), jnp.asarray(labels), jax.random.key(seed)
    rates, decays = (g.ravel() for g in np.meshgrid(LEARNING_RATES, WEIGHT_DECAYS, indexing="ij"))
    heads = _fit(key, x[trained_on], y[trained_on], rates, decays, num_classes=num_classes, epochs=epochs)
    found = np.asarray((_classes(heads, x[chosen_on]) == y[chosen_on]).mean(axis=1))
    best = slice(found.argmax(), found.argmax() + 1)
    head = _fit(key, x, y, rates[best], decays[best], num_classes=num_classes, epochs=epochs)
    predicted = np.asarray(_classes(head, jnp.asarray((test_features - mean) * scale))[0])
    table = found.reshape(len(LEARNING_RATES), len(WEIGHT_DECAYS))
    return Probe(predicted, float(rates[best][0]), float(decays[best][0]), table)


@partial(compilers.jit, static_argnames=("num_classes", "epochs"))
def _fit(key, x, labels, rates, decays, *, num_classes: int, epochs: int):
    """One head per pair of rate and decay: {"kernel": (heads, d, classes), "bias": (heads, classes)}."""
    n, d = x.shape
    batch = min(BATCH, n)
    steps_per_epoch = n // batch
    total = epochs * steps_per_epoch
    heads = {"kernel": jnp.zeros((len(rates), d, num_classes)), "bias": jnp.zeros((len(rates), num_classes))}

    def loss(head, xb, yb):
        logits = xb @ head["kernel"] + head["bias"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), yb[:, None], axis=1).mean()

    def update(head, velocity, gradient, rate, decay):
        gradient = gradient | {"kernel": gradient["kernel"] + decay * head["kernel"]}
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradient)
        return jax.tree.map(lambda p, v: p - rate * v, head, velocity), velocity

    def step(carry, now):
        (heads, velocity), (i, index) = carry, now
        xb, yb = x[index], labels[index]
        gradients = jax.vmap(jax.grad(loss), (0, None, None))(heads, xb, yb)
        # divided by the features' number: the logits' first step is then of one size for 3,072 pixels and 512 features
        rate = rates * 0.5 * (1 + jnp.cos(jnp.pi * i / total)) * jnp.minimum(1.0, 512 / d)
        return jax.vmap(update)(heads, velocity, gradients, rate, decays), None

    def one_epoch(carry, epoch):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), n)[: steps_per_epoch * batch]
        steps = epoch * steps_per_epoch + jnp.arange(steps_per_epoch)
        return jax.lax.scan(step, carry, (steps, order.reshape(steps_per_epoch, batch)))

    (heads, _), _ = jax.lax.scan(one_epoch, (heads, jax.tree.map(jnp.zeros_like, heads)), jnp.arange(epochs))
    return heads


@compilers.jit
def _classes(heads, x) -> jax.Array:
    logits = jnp.einsum("nd,hdc->hnc", x, heads["kernel"]) + heads["bias"][:, None]
    return logits.argmax(axis=-1).astype(jnp.int32)
