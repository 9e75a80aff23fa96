"""Alignment and uniformity (Wang, Isola, arXiv 2005.10242): views of an image agree, images spread over the sphere.

    loss = alignment * align(x, y) + uniformity * (uniform(x) + uniform(y)) / 2
    align(x, y) = mean_i |x_i - y_i|^alpha
    uniform(x) = log mean_{i < j} exp(-t |x_i - x_j|^2)

x and y are rows of length 1. The authors' code is ssnl/align_uniform@e256d47, __init__.py:5-9 and examples/stl10.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from bt_jax.objectives.base import Metric, Objective, Outcome
from bt_jax.objectives.functions import Loss, check_embeddings, embedding_std, off_diagonal, products, unit_rows
from bt_jax.shapes import Array, Float

SHORTEST = 1e-12  # distance, ours: at 0 a power below 2 has no gradient


def align_uniform(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    queue: Float[Array, "m d"] | None = None,
    *,
    alignment: float = 1.0,
    uniformity: float = 1.0,
    alpha: float = 2.0,
    t: float = 2.0,
) -> Loss:
    """The loss of two embeddings of the same n images.

    Args:
      x, y: (n, d), float, n >= 2; the function scales every row to length 1.
      queue: earlier embeddings (m, d), float, for the form with MoCo (ssnl/moco_align_uniform@4d690c3, builder.py).
        Uniformity is then over the pairs of x, and of x with the queue; y and queue get no gradient.
      alignment, uniformity: weights of the terms.
      alpha: power of the distance of the two views.
      t: sharpness of the Gaussian kernel between images.

    Returns:
      The loss, and its terms without their weights: "align", "uniform".

    Raises:
      UserError: the arrays are not as above.
    """
    check_embeddings(x=x, y=y)
    x, y = unit_rows(x), unit_rows(y)
    if queue is None:
        spread = (uniform(x, t) + uniform(y, t)) / 2
    else:
        check_embeddings(1, queue=queue)
        y, queue = jax.lax.stop_gradient((y, unit_rows(queue)))
        spread = uniform(x, t, queue)
    terms = {"align": align(x, y, alpha), "uniform": spread}
    return alignment * terms["align"] + uniformity * terms["uniform"], terms


def align(x: Float[Array, "n d"], y: Float[Array, "n d"], alpha: float) -> Float[jax.Array, ""]:
    """Mean distance of paired rows to the power alpha."""
    squares = jnp.maximum(jnp.square(x - y).sum(axis=1), SHORTEST**2)
    return (squares ** (alpha / 2)).mean()


def uniform(x: Float[Array, "n d"], t: float, queue: Float[Array, "m d"] | None = None) -> Float[jax.Array, ""]:
    """Log of the mean of exp(-t distance^2) over all pairs of x, and of x with the queue; rows of length 1."""
    n, exponents = len(x), off_diagonal(2 * t * (products(x, x) - 1))  # of each pair of x twice
    if queue is None:
        return jax.nn.logsumexp(exponents) - math.log(n * (n - 1))
    across = 2 * t * (products(x, queue) - 1)
    both = jnp.logaddexp(jax.nn.logsumexp(exponents) - math.log(2), jax.nn.logsumexp(across))
    return both - math.log(n * (n - 1) / 2 + n * len(queue))


@dataclasses.dataclass(frozen=True)
class AlignUniform(Objective):
    """Both views in one batch of statistics, as in the STL-10 example, whose weights, alpha and t the defaults are."""

    alignment: float = 1.0
    uniformity: float = 1.0
    alpha: float = 2.0
    t: float = 2.0

    title: ClassVar = "alignment and uniformity"
    paper: ClassVar = (
        "Wang, Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the"
        " Hypersphere, [arXiv 2005.10242](https://arxiv.org/abs/2005.10242)"
    )
    metrics: ClassVar = {
        "align": Metric("alignment: the views differ", "Alignment should fall; 0 is full agreement.", term=True),
        "uniform": Metric("uniformity: images lie together", "Uniformity: -4 is best, 0 is collapse.", term=True),
    }
    model: ClassVar = {"projector": (4096, 4096, 128), "projector_bias": False}  # fc6 to fc8 of stl10/encoder.py
    positive: ClassVar = ("alpha", "t")

    def loss(self, run, views, memory, context):
        """`align_uniform` of the projector's outputs."""
        h = run("backbone", views, together=True)
        z = run("projector", h, together=True)
        loss, terms = align_uniform(
            *z, alignment=self.alignment, uniformity=self.uniformity, alpha=self.alpha, t=self.t
        )
        return Outcome(loss, h, terms | {"embedding_std": embedding_std(z[0])})
