"""VICReg (Bardes, Ponce, LeCun, arXiv 2105.04906): views agree, every feature varies, and no two features covary.

    loss = 25 mean (z1 - z2)^2 + 25 (v(z1) + v(z2)) / 2 + c(z1) + c(z2)
    v(z) = mean_j relu(1 - sqrt(var z_j + 1e-4))
    c(z) = sum_{i != j} C_ij^2 / d, C the covariance over n - 1

These are the formulas of the authors' code (facebookresearch/vicreg@4e12602, main_vicreg.py:194-220): the variance term
is the mean over the two views, the covariance term is their sum, and variances are unbiased.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from bt_jax.objectives.base import Context, Metric, Objective, Outcome
from bt_jax.objectives.forward import Forward, Tree
from bt_jax.objectives.functions import check_embeddings, embedding_std
from bt_jax.shapes import Array, Float

EPS = 1e-4  # main_vicreg.py:194-220


def vicreg(
    z1: Float[Array, "n d"],
    z2: Float[Array, "n d"],
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> tuple[Float[jax.Array, ""], dict[str, Float[jax.Array, ""]]]:
    """The loss of two embeddings of the same n images.

    Args:
      z1, z2: (n, d), float, n >= 2.
      invariance, variance, covariance: weights of the terms; the defaults are those of main_vicreg.py.

    Returns:
      The loss in float32 or wider, and its terms without their weights: "invariance", "variance", "covariance".

    Raises:
      UserError: z1 and z2 are not as above.
    """
    check_embeddings(z1=z1, z2=z2)
    z1, z2 = (jnp.asarray(z, jnp.promote_types(z.dtype, jnp.float32)) for z in (z1, z2))
    terms = {
        "invariance": jnp.square(z1 - z2).mean(),
        "variance": (_hinge(z1) + _hinge(z2)) / 2,
        "covariance": _off_diagonal(z1) + _off_diagonal(z2),
    }
    loss = invariance * terms["invariance"] + variance * terms["variance"] + covariance * terms["covariance"]
    return loss, terms


def _hinge(z: jax.Array) -> jax.Array:
    return jax.nn.relu(1 - jnp.sqrt(z.var(axis=0, ddof=1) + EPS)).mean()


def _off_diagonal(z: jax.Array) -> jax.Array:
    """The sum of squares off the diagonal of the covariance, over d, from the smaller product: (n, n) or (d, d)."""
    n, d = z.shape
    z = z - z.mean(axis=0)
    product = jnp.matmul(z, z.T, precision="highest") if n < d else jnp.matmul(z.T, z, precision="highest")
    squares = jnp.square(product).sum() / (n - 1) ** 2
    return (squares - jnp.square(z.var(axis=0, ddof=1)).sum()) / d


@dataclasses.dataclass(frozen=True)
class VICReg(Objective):
    """The loss above of the projector's outputs for two views, each with its own batch statistics."""

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    title, paper = "VICReg", "Bardes, Ponce, LeCun, VICReg, [arXiv 2105.04906](https://arxiv.org/abs/2105.04906)"
    metrics: ClassVar = {
        "invariance": Metric("invariance: distance of the views", "The loss is their weighted sum.", term=True),
        "variance": Metric(
            "variance: features that hardly vary",
            "If the variance term stays near 1, the embedding has collapsed.",
            term=True,
        ),
        "covariance": Metric("covariance: redundant features", "", term=True),
    }

    def loss(self, run: Forward, views: Sequence[jax.Array], memory: Tree, context: Context) -> Outcome:
        """The function `vicreg` of the projector's outputs."""
        h = run("backbone", views)
        z = run("projector", h)
        loss, terms = vicreg(*z, invariance=self.invariance, variance=self.variance, covariance=self.covariance)
        return Outcome(loss, h, terms | {"embedding_std": embedding_std(z[0])})
