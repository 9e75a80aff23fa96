"""SimCLR (Chen, Kornblith, Norouzi, Hinton, arXiv 2002.05709): find the other view of an image among the whole batch.

    loss = mean over the 2n embeddings i of  -log exp(z_i z_p / t) / sum_{k != i} exp(z_i z_k / t)

z are rows of length 1, and p is the other view of i. The authors' code (google-research/simclr@383d414, objective.py)
adds the means of the two views, which is twice this. LARS divides the gradient of a kernel by its length, so that a
factor of 2 changes the share of the weight decay alone.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bt_jax.objectives.base import Metric, Objective, Outcome, build_head
from bt_jax.objectives.functions import Loss, check_embeddings, contrast, embedding_std, products, unit_rows
from bt_jax.shapes import Array, Float

SHORTEST = 1e-6  # of tf.math.l2_normalize, objective.py:55


def simclr(
    z1: Float[Array, "n d"], z2: Float[Array, "n d"], *, temperature: float = 0.1, sum_of_views: bool = False
) -> Loss:
    """NT-Xent, the loss of two embeddings of the same n images.

    Args:
      z1, z2: (n, d), float, n >= 2; the function scales every row to length 1.
      temperature: divisor of the cosines.
      sum_of_views: the sum of the means of the two views, as in the authors' code. Otherwise the mean over all views.

    Returns:
      The loss, and "contrast_top1", the share of views whose nearest embedding is the other view of their image.

    Raises:
      UserError: z1 and z2 are not as above.
    """
    check_embeddings(z1=z1, z2=z2)
    # The views of an image are neighbours in one array of 2n rows. If a batch is split over devices, both lie on one
    # device, and the devices exchange this array alone.
    z1, z2 = unit_rows(z1, SHORTEST), unit_rows(z2, SHORTEST)
    z = jnp.stack([z1, z2], axis=1).reshape(-1, z1.shape[1])
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (len(z), len(z)), axis) for axis in (0, 1))
    others = jnp.where(row // 2 == column // 2, -jnp.inf, products(z, z) / temperature)
    loss, found = contrast(jnp.repeat((z1 * z2).sum(axis=1) / temperature, 2), others)
    return loss * 2 if sum_of_views else loss, {"contrast_top1": found}


@dataclasses.dataclass(frozen=True)
class SimCLR(Objective):
    """Both views in one batch of statistics (model.py:58), and a batch norm without offset on the projector's output.

    Attributes:
      temperature: 0.1 as in run.py:191; the README of the authors' code has 0.5 for CIFAR-10.
      sum_of_views: the authors' sum in place of the mean.
    """

    temperature: float = 0.1
    sum_of_views: bool = False

    title: ClassVar = "SimCLR"
    paper: ClassVar = (
        "Chen, Kornblith, Norouzi, Hinton, A Simple Framework for Contrastive Learning of Visual Representations,"
        " [arXiv 2002.05709](https://arxiv.org/abs/2002.05709)"
    )
    metrics: ClassVar = {
        "contrast_top1": Metric(
            "Positives found", "Share of views whose nearest embedding is the other view: towards 1.", term=True
        )
    }
    model: ClassVar = {"projector": (2048, 2048, 128), "projector_bias": False}  # model_util.py:133-166, run.py
    positive: ClassVar = ("temperature",)

    def heads(self, model, feature_dim):
        """The projector, with a batch norm on every layer."""
        return {"projector": build_head(model, feature_dim, model.projector, last_norm=("scale",))}

    def loss(self, run, views, memory, context):
        """`simclr` of the projector's outputs."""
        h = run("backbone", views, together=True)
        z = run("projector", h, together=True)
        loss, metrics = simclr(*z, temperature=self.temperature, sum_of_views=self.sum_of_views)
        return Outcome(loss, h, metrics | {"embedding_std": embedding_std(z[0])})
