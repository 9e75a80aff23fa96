"""SimCLR (Chen, Kornblith, Norouzi, Hinton, arXiv 2002.05709): find the other view of an image among the whole batch.

    loss = mean over the 2n embeddings i of  -log exp(z_i z_p / t) / sum_{k != i} exp(z_i z_k / t)

z are rows of length 1, and p is the other view of i. The authors' code (google-research/simclr@383d414, objective.py)
adds the means of the two views, which is twice this. LARS hides a factor of 2 from all kernels.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from bt_jax.objectives.base import Metric, Objective, Outcome, build_head
from bt_jax.objectives.functions import Loss, contrast, embedding_std, off_diagonal, products, unit_rows
from bt_jax.shapes import Array, Float

SHORTEST = 1e-6  # of tf.math.l2_normalize, objective.py:55


def simclr(
    z1: Float[Array, "n d"], z2: Float[Array, "n d"], *, temperature: float = 0.1, sum_of_views: bool = False
) -> Loss:
    """NT-Xent of two embeddings (n, d) of the same n images, and "contrast_top1"; `SimCLR` explains the options.

    In four blocks of products: the positives are products of rows that lie on one device, and no block is transposed.
    """
    z1, z2 = unit_rows(z1, SHORTEST), unit_rows(z2, SHORTEST)
    positives = (z1 * z2).sum(axis=1) / temperature
    halves = []
    for a, b in ((z1, z2), (z2, z1)):
        others = [off_diagonal(products(a, each) / temperature) for each in (b, a)]
        halves.append(contrast(positives, jnp.concatenate(others, axis=1)))
    (loss1, found1), (loss2, found2) = halves
    loss = loss1 + loss2 if sum_of_views else (loss1 + loss2) / 2
    return loss, {"contrast_top1": (found1 + found2) / 2}


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
