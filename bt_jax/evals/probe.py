"""A linear probe on cached features, whose learning rate and weight decay are chosen on held-out training images.

One classifier is trained for each pair of learning rate and weight decay. All classifiers see the same minibatches, so
that training them is one batched matrix product. The test images influence no choice.
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
HELD_OUT = 0.1  # share of the training images on which the pair is chosen


class Probe(NamedTuple):
    """The result of a fitted linear classifier.

    Attributes:
      predicted: int32 (n,), predicted classes of the test features.
      rate, decay: the chosen pair.
      held_out_top1: float32 (rates, decays), accuracy of every pair on the held-out training images.
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
    """The top-1 accuracy of `fit` on the test features, a fraction; test_labels is int (m,)."""
    fitted = fit(features, labels, test_features, num_classes=num_classes, epochs=epochs, seed=seed)
    return float((fitted.predicted == np.asarray(test_labels)).mean())


def fit(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    test_features: Float[np.ndarray, "m d"],
    *,
    num_classes: int,
    epochs: int = 30,
    seed: int = 0,
) -> Probe:
    """Fits a linear classifier on training features and classifies the test features.

    The pair of learning rate and weight decay is the best of a grid on a held-out tenth of the training images. The
    classifier is then fitted with that pair on all training images. Features are standardised by the mean and deviation
    of the training images, so that one grid suits features of any scale. The optimizer is SGD with momentum, with a
    cosine schedule to zero.

    Args:
      features: float (n, d).
      labels: int (n,).
      test_features: float (m, d).
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    mean, std = features.mean(axis=0), features.std(axis=0)
    scale = 1 / np.maximum(std, 1e-3 * std.mean() + 1e-12)  # a dead feature stays small
    order = np.random.default_rng(seed).permutation(len(features))
    count = max(int(HELD_OUT * len(features)), 1)
    held_out, trained = order[:count], order[count:]
    x, y, key = jnp.asarray((features - mean) * scale), jnp.asarray(labels), jax.random.key(seed)
    rates, decays = (g.ravel() for g in np.meshgrid(LEARNING_RATES, WEIGHT_DECAYS, indexing="ij"))
    classifiers = _fit(key, x[trained], y[trained], rates, decays, num_classes=num_classes, epochs=epochs)
    accuracy = np.asarray((_classes(classifiers, x[held_out]) == y[held_out]).mean(axis=1))
    best = slice(accuracy.argmax(), accuracy.argmax() + 1)
    classifier = _fit(key, x, y, rates[best], decays[best], num_classes=num_classes, epochs=epochs)
    predicted = np.asarray(_classes(classifier, jnp.asarray((test_features - mean) * scale))[0])
    table = accuracy.reshape(len(LEARNING_RATES), len(WEIGHT_DECAYS))
    return Probe(predicted, float(rates[best][0]), float(decays[best][0]), table)


@partial(compilers.jit, static_argnames=("num_classes", "epochs"))
def _fit(key, x, labels, rates, decays, *, num_classes: int, epochs: int):
    """A classifier for each pair of rate and decay: {"kernel": (pairs, d, classes), "bias": (pairs, classes)}."""
    n, d = x.shape
    batch = min(BATCH, n)
    steps_per_epoch = n // batch
    total = epochs * steps_per_epoch
    classifiers = {"kernel": jnp.zeros((len(rates), d, num_classes)), "bias": jnp.zeros((len(rates), num_classes))}

    def loss(classifier, xb, yb):
        logits = xb @ classifier["kernel"] + classifier["bias"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), yb[:, None], axis=1).mean()

    def update(classifier, velocity, gradient, rate, decay):
        gradient = gradient | {"kernel": gradient["kernel"] + decay * classifier["kernel"]}
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradient)
        return jax.tree.map(lambda p, v: p - rate * v, classifier, velocity), velocity

    def step(carry, minibatch):
        (classifiers, velocity), (i, index) = carry, minibatch
        xb, yb = x[index], labels[index]
        gradients = jax.vmap(jax.grad(loss), (0, None, None))(classifiers, xb, yb)
        # Above 512 features, the rate falls with their number d: the first change of the logits is then of one size for
        # 512 features and 3,072 pixels.
        rate = rates * 0.5 * (1 + jnp.cos(jnp.pi * i / total)) * jnp.minimum(1.0, 512 / d)
        return jax.vmap(update)(classifiers, velocity, gradients, rate, decays), None

    def one_epoch(carry, epoch):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), n)[: steps_per_epoch * batch]
        steps = epoch * steps_per_epoch + jnp.arange(steps_per_epoch)
        return jax.lax.scan(step, carry, (steps, order.reshape(steps_per_epoch, batch)))

    velocity = jax.tree.map(jnp.zeros_like, classifiers)
    (classifiers, _), _ = jax.lax.scan(one_epoch, (classifiers, velocity), jnp.arange(epochs))
    return classifiers


@compilers.jit
def _classes(classifiers, x) -> jax.Array:
    """The predicted classes of every classifier, int32 (pairs, n)."""
    logits = jnp.einsum("nd,pdc->pnc", x, classifiers["kernel"]) + classifiers["bias"][:, None]
    return logits.argmax(axis=-1).astype(jnp.int32)
