"""SimSiam (Chen, He, arXiv 2011.10566): the predictor finds the other view's projection, which gets no gradient.

    loss = -(mean cos(p1, z2) + mean cos(p2, z1)) / 2

The authors' code is facebookresearch/simsiam@a7bc177: main_simsiam.py:295 and simsiam/builder.py.
"""

import dataclasses
from typing import ClassVar

import jax

from bt_jax.objectives.base import Metric, Objective, Outcome, build_head
from bt_jax.objectives.functions import Loss, check_embeddings, embedding_std, unit_rows
from bt_jax.shapes import Array, Float

SHORTEST = 1e-8  # of torch.nn.CosineSimilarity


def simsiam(p1: Float[Array, "n d"], p2: Float[Array, "n d"], z1: Float[Array, "n d"], z2: Float[Array, "n d"]) -> Loss:
    """The loss of two views of the same n images.

    Args:
      p1, p2: the predictor's outputs (n, d), float.
      z1, z2: the projector's outputs (n, d), float; they get no gradient.

    Returns:
      The loss, and "agreement", the mean cosine of predictions and projections, which is minus the loss.

    Raises:
      UserError: the arrays are not as above.
    """
    check_embeddings(1, p1=p1, p2=p2, z1=z1, z2=z2)
    agreement = (_cosine(p1, z2) + _cosine(p2, z1)) / 2
    return -agreement, {"agreement": agreement}


def _cosine(p: Array, z: Array) -> jax.Array:
    return (unit_rows(p, SHORTEST) * jax.lax.stop_gradient(unit_rows(z, SHORTEST))).sum(axis=1).mean()


@dataclasses.dataclass(frozen=True)
class SimSiam(Objective):
    """A predictor whose learning rate has no schedule (main_simsiam.py:194, 363), on a normalised projection.

    Attributes:
      predictor: width of the predictor's hidden layer, builder.py:11.
    """

    predictor: int = 512

    title: ClassVar = "SimSiam"
    paper: ClassVar = (
        "Chen, He, Exploring Simple Siamese Representation Learning,"
        " [arXiv 2011.10566](https://arxiv.org/abs/2011.10566)"
    )
    metrics: ClassVar = {
        "agreement": Metric(
            "Cosine of prediction and projection", "Towards 1. At 1 with a spread of 0: collapse.", term=True
        )
    }
    constant_rate: ClassVar = ("predictor",)
    model: ClassVar = {"projector": (2048, 2048, 2048), "projector_bias": False}  # builder.py:28-36
    positive: ClassVar = ("predictor",)

    def heads(self, model, feature_dim):
        """The projector, with a batch norm without parameters on its output, and the predictor (builder.py:28-42)."""
        projector = build_head(model, feature_dim, model.projector, last_norm=())
        width = projector.feature_dim
        predictor = build_head(model, width, (self.predictor, width), bias=False, last_bias=True)
        return {"projector": projector, "predictor": predictor}

    def loss(self, run, views, memory, context):
        """`simsiam` of the predictor's and the projector's outputs."""
        h = run("backbone", views)
        z = run("projector", h)
        loss, metrics = simsiam(*run("predictor", z), *z)
        return Outcome(loss, h, metrics | {"embedding_std": embedding_std(z[0])})
