"""DirectPred (Tian, Chen, Ganguli, arXiv 2102.06810): BYOL with a linear predictor that is computed, not trained.

    loss = -2 mean cos(W z1, t2) - 2 mean cos(W z2, t1)
    F = rho F + (1 - rho) E[z z^T], the first F that of the first batch
    W = U diag(p) U^T for F = U diag(s) U^T
    p = max(sqrt(s / max s) + eps, 1e-4)  in the code,  sqrt(s) + eps max s  in the paper

The authors' code is facebookresearch/luckmatters@625b5f7, ssl/real-dataset: byol_trainer.py with the flags of the
README. A step predicts by the W of the steps before it.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bt_jax.config import arguments
from bt_jax.objectives import momentum
from bt_jax.objectives.base import Metric, Objective, Outcome, build_head, output_width
from bt_jax.objectives.functions import Loss, check_embeddings, embedding_std, products, unit_rows
from bt_jax.shapes import Array, Float

LEAST = 1e-4  # eigenvalue of W, compute_w_corr of byol_trainer.py


def direct_pred(
    z1: Float[Array, "n d"],
    z2: Float[Array, "n d"],
    t1: Float[Array, "n d"],
    t2: Float[Array, "n d"],
    w: Float[Array, "d d"],
) -> Loss:
    """The loss of two views of the same n images.

    Args:
      z1, z2: the projector's outputs (n, d), float.
      t1, t2: the momentum network's projections (n, d), float; they get no gradient.
      w: the predictor (d, d), float; it gets no gradient. `computed_predictor` computes it.

    Returns:
      The loss, and "agreement", the mean cosine of predictions and targets.

    Raises:
      UserError: the arrays are not as above.
    """
    check_embeddings(1, z1=z1, z2=z2, t1=t1, t2=t2)
    check_embeddings(1, w=w)
    w, t1, t2 = jax.lax.stop_gradient((w, t1, t2))
    agreement = (_cosine(z1, w, t2) + _cosine(z2, w, t1)) / 2
    return -4 * agreement, {"agreement": agreement}


def _cosine(z: Array, w: Array, t: Array) -> jax.Array:
    return (unit_rows(products(z, w)) * unit_rows(t)).sum(axis=1).mean()


def correlation(z1: Float[Array, "n d"], z2: Float[Array, "n d"]) -> Float[jax.Array, "d d"]:
    """E[z z^T] over the rows of both arrays, not centred."""
    return (products(z1.T, z1.T) + products(z2.T, z2.T)) / (2 * len(z1))


def computed_predictor(f: Float[Array, "d d"], *, eps: float, rule: str) -> Float[jax.Array, "d d"]:
    """W from the correlation F by the rule "code" or "paper"."""
    s, u = jnp.linalg.eigh(f)
    s = jnp.maximum(s, jnp.finfo(s.dtype).tiny)  # eigh rounds zeros to either side
    p = jnp.maximum(jnp.sqrt(s / s[-1]) + eps, LEAST) if rule == "code" else jnp.sqrt(s) + eps * s[-1]
    return products(u * p, u)


@dataclasses.dataclass(frozen=True)
class DirectPred(Objective):
    """A momentum network, and a predictor in memory.

    Attributes:
      momentum: of the momentum network, constant (config/byol_config.yaml: m).
      rho: weight of the old correlation (README: dyn_lambda).
      eps: added to every eigenvalue of W. The rule "paper" first multiplies it by the largest eigenvalue of F (README:
        dyn_eps).
      rule: "code" or "paper", see above.
    """

    momentum: float = 0.996
    rho: float = 0.3
    eps: float = 0.01
    rule: str = "code"

    title: ClassVar = "DirectPred"
    paper: ClassVar = (
        "Tian, Chen, Ganguli, Understanding Self-Supervised Learning Dynamics without Contrastive Pairs,"
        " [arXiv 2102.06810](https://arxiv.org/abs/2102.06810)"
    )
    metrics: ClassVar = {
        "agreement": Metric(
            "Cosine of prediction and target", "Towards 1. At 1 with a spread of 0: collapse.", term=True
        ),
        "dimensions": Metric(
            "Dimensions of the correlation", "(sum s)^2 / sum s^2 of its eigenvalues. A fall to 1 is collapse."
        ),
    }
    model: ClassVar = {"projector": (512, 128), "projector_bias": True}  # config/byol_config.yaml
    fractions: ClassVar = ("momentum", "rho")

    def __post_init__(self) -> None:
        super().__post_init__()
        arguments.choose("config.objective.rule", self.rule, ("code", "paper"))

    def heads(self, model, feature_dim):
        """The projector; its batch norms have no parameters (models/mlp_head.py)."""
        return {"projector": build_head(model, feature_dim, model.projector, hidden_norm=())}

    def init_memory(self, key, params, images):
        """The momentum network, the correlation, the predictor as torch.nn.Linear starts it, and steps taken."""
        d = output_width(params["projector"])
        w = jax.random.uniform(key, (d, d), minval=-(d**-0.5), maxval=d**-0.5)
        return {"target": momentum.start(params), "f": jnp.zeros((d, d)), "w": w, "steps": jnp.int32(0)}

    def loss(self, run, views, memory, context):
        """`direct_pred` of the projector's outputs, the momentum network's and the predictor in memory."""
        h = run("backbone", views)
        z1, z2 = run("projector", h)
        target = momentum.follow(memory["target"], run.params, self.momentum)
        t1, t2 = momentum.project(run, target, views)
        loss, metrics = direct_pred(z1, z2, t1, t2, memory["w"])
        new = jax.lax.stop_gradient(correlation(z1, z2))
        f = jnp.where(memory["steps"] > 0, self.rho * memory["f"] + (1 - self.rho) * new, new)
        w = computed_predictor(f, eps=self.eps, rule=self.rule)
        metrics |= {"dimensions": jnp.trace(f) ** 2 / jnp.square(f).sum(), "embedding_std": embedding_std(z1)}
        return Outcome(loss, h, metrics, {"target": target, "f": f, "w": w, "steps": memory["steps"] + 1})
