"""InfoNCE (van den Oord, Li, Vinyals, CPC, arXiv 1807.03748): which embedding belongs to a context, by z^T W c.

    loss = mean over contexts i of  -log exp(z_i W c_i) / sum_j exp(z_j W c_i)

Nothing is normalised and there is no temperature (equation 4 of the paper). The context is the projection of the first
view, z that of the second, and W is trained. CPC's sequence model, which makes contexts of patches, does not fit two
views of an image.
"""

import dataclasses
from typing import ClassVar

from bt_jax.objectives.base import Metric, Objective, Outcome, build_head
from bt_jax.objectives.functions import Loss, check_embeddings, contrast, embedding_std, off_diagonal, products
from bt_jax.shapes import Array, Float


def infonce(z: Float[Array, "n d"], c: Float[Array, "n e"], w: Float[Array, "d e"]) -> Loss:
    """The loss of embeddings and contexts of the same n images.

    Args:
      z: embeddings (n, d), float, n >= 2.
      c: contexts (n, e), float.
      w: the bilinear form (d, e), float.

    Returns:
      The loss, and "contrast_top1", the share of contexts whose embedding has the largest score.

    Raises:
      UserError: the arrays are not as above.
    """
    check_embeddings(z=z)
    check_embeddings(c=c)
    check_embeddings(1, w=w)
    predicted = products(c, w)
    loss, found = contrast((predicted * z).sum(axis=1), off_diagonal(products(predicted, z)))
    return loss, {"contrast_top1": found}


@dataclasses.dataclass(frozen=True)
class InfoNCE(Objective):
    """One projector for both views, and the bilinear form as a head of one layer without bias."""

    title: ClassVar = "InfoNCE"
    paper: ClassVar = (
        "van den Oord, Li, Vinyals, Representation Learning with Contrastive Predictive Coding,"
        " [arXiv 1807.03748](https://arxiv.org/abs/1807.03748)"
    )
    metrics: ClassVar = {
        "contrast_top1": Metric(
            "Positives found", "Share of first views whose second view has the largest score: towards 1.", term=True
        )
    }
    model: ClassVar = {"projector": (2048, 128)}  # no published one for two views; the width is SimCLR's

    def heads(self, model, feature_dim):
        """The projector and the bilinear form."""
        projector = build_head(model, feature_dim, model.projector)
        width = projector.feature_dim
        return {"projector": projector, "bilinear": build_head(model, width, (width,), bias=False)}

    def loss(self, run, views, memory, context):
        """`infonce` of the projector's outputs."""
        h = run("backbone", views)
        c, z = run("projector", h)
        loss, metrics = infonce(z, c, run.params["bilinear"]["fc0"]["kernel"].T)
        return Outcome(loss, h, metrics | {"embedding_std": embedding_std(z)})
