"""BYOL (Grill et al., arXiv 2006.07733): the predictor finds the projection of the other view by a momentum network.

    loss = mean |p1 - t2|^2 + mean |p2 - t1|^2,  p predictions, t targets, all rows of length 1

The authors' code is deepmind-research/byol@f5de0ed: byol_experiment.py:239-250 and :338-343, configs/byol.py, and
helpers.py, networks.py and schedules.py of utils/. There the momentum network starts from a draw of its own, here as a
copy.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bt_jax.objectives import momentum
from bt_jax.objectives.base import Metric, Objective, Outcome, build_head
from bt_jax.objectives.functions import Loss, check_embeddings, embedding_std, unit_rows
from bt_jax.shapes import Array, Float, Number

SHORTEST = 1e-6  # helpers.py:81: the squared length is at least 1e-12


def byol(p1: Float[Array, "n d"], p2: Float[Array, "n d"], t1: Float[Array, "n d"], t2: Float[Array, "n d"]) -> Loss:
    """The loss of two views of the same n images.

    Args:
      p1, p2: the predictor's outputs (n, d), float.
      t1, t2: the momentum network's projections (n, d), float; they get no gradient.

    Returns:
      The loss, and "agreement", the mean cosine of predictions and targets.

    Raises:
      UserError: the arrays are not as above.
    """
    check_embeddings(1, p1=p1, p2=p2, t1=t1, t2=t2)
    loss = _distance(p1, t2) + _distance(p2, t1)
    return loss, {"agreement": 1 - loss / 4}


def _distance(p: Array, t: Array) -> jax.Array:
    return jnp.square(unit_rows(p, SHORTEST) - jax.lax.stop_gradient(unit_rows(t, SHORTEST))).sum(axis=1).mean()


def tau(step: Number, total_steps: Number, start: float) -> jax.Array:
    """The weight of the old average in the update after the step: from `start` to 1 along half a cosine."""
    return 1 - (1 - start) * (jnp.cos(jnp.pi * (step / total_steps)) + 1) / 2


@dataclasses.dataclass(frozen=True)
class BYOL(Objective):
    """Predictor and momentum network.

    Attributes:
      momentum: tau at the start; 0.996 for 1000 epochs, 0.99 for 300 and 100, 0.97 for 40 (configs/byol.py:23).
      predictor: width of the predictor's hidden layer, configs/byol.py:40.
    """

    momentum: float = 0.996
    predictor: int = 4096

    title: ClassVar = "BYOL"
    paper: ClassVar = (
        "Grill et al., Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning,"
        " [arXiv 2006.07733](https://arxiv.org/abs/2006.07733)"
    )
    metrics: ClassVar = {
        "agreement": Metric(
            "Cosine of prediction and target", "Towards 1. At 1 with a spread of 0: collapse.", term=True
        ),
        "tau": Metric("Weight of the old average", "Rises to 1 along half a cosine; at 1 the targets stand still."),
    }
    model: ClassVar = {"projector": (4096, 256), "projector_bias": True}  # configs/byol.py:40-42
    positive: ClassVar = ("predictor",)
    fractions: ClassVar = ("momentum",)

    def heads(self, model, feature_dim):
        """Projector and predictor, their last layers without bias (networks.py:41-44)."""
        projector = build_head(model, feature_dim, model.projector, last_bias=False)
        width = projector.feature_dim
        return {
            "projector": projector,
            "predictor": build_head(model, width, (self.predictor, width), bias=True, last_bias=False),
        }

    def init_memory(self, key, params, images):
        """The momentum network."""
        return {"target": momentum.start(params)}

    def loss(self, run, views, memory, context):
        """`byol` of the predictor's outputs and the momentum network's projections."""
        h = run("backbone", views)
        z = run("projector", h)
        rate = jnp.where(context.step > 0, tau(context.step - 1, context.total_steps, self.momentum), 1)
        target = momentum.follow(memory["target"], run.params, rate)
        loss, metrics = byol(*run("predictor", z), *momentum.project(run, target, views))
        return Outcome(loss, h, metrics | {"tau": rate, "embedding_std": embedding_std(z[0])}, {"target": target})
