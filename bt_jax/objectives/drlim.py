"""DrLIM (Hadsell, Chopra, LeCun, CVPR 2006): views of one image at distance 0, other images at least a margin apart.

    loss = mean_i D(i, i)^2 / 2 + mean_{i != j} max(0, margin - D(i, j))^2 / 2

D is the Euclidean distance of raw outputs z1_i and z2_j. The paper sums over a given list of pairs; here every two
images of the batch are a negative pair.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bt_jax.objectives.base import Metric, Objective, Outcome
from bt_jax.objectives.functions import Loss, check_embeddings, embedding_std, products
from bt_jax.shapes import Array, Float

SHORTEST = 1e-6  # distance, ours: at 0 there is no gradient


def drlim(z1: Float[Array, "n d"], z2: Float[Array, "n d"], *, margin: float = 1.0) -> Loss:
    """The loss of two embeddings of the same n images.

    Args:
      z1, z2: (n, d), float, n >= 2; their length counts.
      margin: the distance beyond which negative pairs do not count.

    Returns:
      The loss, and its terms: "positive_pairs", "negative_pairs".

    Raises:
      UserError: z1 and z2 are not as above.
    """
    check_embeddings(z1=z1, z2=z2)
    n = len(z1)
    z1, z2 = (jnp.asarray(z, jnp.promote_types(z.dtype, jnp.float32)) for z in (z1, z2))
    positive = jnp.square(z1 - z2).sum(axis=1).mean() / 2
    centre = (z1.mean(axis=0) + z2.mean(axis=0)) / 2  # moves no distance, and the difference of squares rounds less
    a, b = z1 - centre, z2 - centre
    squares = jnp.square(a).sum(axis=1)[:, None] + jnp.square(b).sum(axis=1) - 2 * products(a, b)
    gaps = jax.nn.relu(margin - jnp.sqrt(jnp.maximum(squares, SHORTEST**2)))
    negative = jnp.square(jnp.where(jnp.eye(n, dtype=bool), 0, gaps)).sum() / (2 * n * (n - 1))
    return positive + negative, {"positive_pairs": positive, "negative_pairs": negative}


@dataclasses.dataclass(frozen=True)
class DrLIM(Objective):
    """The projector's outputs of two views, each with its own batch statistics.

    Attributes:
      margin: the distance beyond which negative pairs do not count; the paper names none, and 1 fixes the scale.
    """

    margin: float = 1.0

    title: ClassVar = "DrLIM"
    paper: ClassVar = (
        "Hadsell, Chopra, LeCun, Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006,"
        " [doi 10.1109/CVPR.2006.100](https://doi.org/10.1109/CVPR.2006.100)"
    )
    metrics: ClassVar = {
        "positive_pairs": Metric("positive pairs: the views differ", "Both should fall.", term=True),
        "negative_pairs": Metric("negative pairs: images within the margin", "", term=True),
    }
    model: ClassVar = {"projector": (2048, 128)}  # no published one for this size; the width is SimCLR's
    positive: ClassVar = ("margin",)

    def loss(self, run, views, memory, context):
        """`drlim` of the projector's outputs."""
        h = run("backbone", views)
        z = run("projector", h)
        loss, terms = drlim(*z, margin=self.margin)
        return Outcome(loss, h, terms | {"embedding_std": embedding_std(z[0])})
