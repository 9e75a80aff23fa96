"""MoCo (He et al., arXiv 1911.05722; v2: Chen et al., arXiv 2003.04297): find the key of a query among a queue of keys.

    loss = mean_i -log exp(q_i k_i / t) / (exp(q_i k_i / t) + sum_j exp(q_i queue_j / t))

Queries q are the network's projections of the first view, keys k a momentum network's of the second, all rows of length
1. The queue has the keys of the steps before. The authors' code is facebookresearch/moco@7397dfe, moco/builder.py; its
notebook for CIFAR-10 has the symmetric form and the batch norm in groups.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bt_jax.messages import UserError
from bt_jax.objectives import momentum
from bt_jax.objectives.base import Metric, Objective, Outcome, Rows, build_head, output_width
from bt_jax.objectives.functions import Loss, check_embeddings, contrast, embedding_std, products, unit_rows
from bt_jax.shapes import Array, Float


def moco(
    q: Float[Array, "n d"], k: Float[Array, "n d"], queue: Float[Array, "m d"], *, temperature: float = 0.2
) -> Loss:
    """The loss of queries and keys of the same n images.

    Args:
      q: the network's projections (n, d) of the first view, float.
      k: the momentum network's projections (n, d) of the second view, float; they get no gradient.
      queue: earlier keys (m, d), float, rows of length 1; they get no gradient.
      temperature: divisor of the cosines.

    Returns:
      The loss, and "contrast_top1", the share of queries whose key has the largest score.

    Raises:
      UserError: the arrays are not as above.
    """
    check_embeddings(1, q=q, k=k)
    check_embeddings(1, queue=queue)
    q, k = unit_rows(q), unit_rows(k)
    k, queue = jax.lax.stop_gradient((k, queue))
    loss, found = contrast((q * k).sum(axis=1) / temperature, products(q, queue) / temperature)
    return loss, {"contrast_top1": found}


@dataclasses.dataclass(frozen=True)
class MoCo(Objective):
    """MoCo v2. For v1, set temperature to 0.07 and config.model.projector to (128,).

    Attributes:
      temperature: of v2 (README); v1 has 0.07.
      momentum: of the momentum network, constant (builder.py).
      queue: number of keys, a multiple of those of a step (builder.py:73).
      symmetric: the sum of the losses of both views as queries, as the notebook's; the queue gets both views' keys.
      bn_groups: number of groups of the batch with batch statistics of their own in the backbone. The
        keys are shuffled first, so that the statistics do not tell which key belongs to a query. The README uses 8
        GPUs, the notebook 8 splits.
    """

    temperature: float = 0.2
    momentum: float = 0.999
    queue: int = 65536
    symmetric: bool = False
    bn_groups: int = 8

    title: ClassVar = "MoCo v2"
    paper: ClassVar = (
        "Chen, Fan, Girshick, He, Improved Baselines with Momentum Contrastive Learning,"
        " [arXiv 2003.04297](https://arxiv.org/abs/2003.04297)"
    )
    metrics: ClassVar = {
        "contrast_top1": Metric("Keys found", "Share of queries whose key scores above the queue: rises.", term=True),
        "queue_age": Metric("Age of the oldest key, in steps", "Keys replace the random rows of the start."),
    }
    model: ClassVar = {"projector": (2048, 128), "projector_bias": True}  # builder.py:32-40
    positive: ClassVar = ("temperature", "queue", "bn_groups")
    fractions: ClassVar = ("momentum",)

    def check_batch(self, batch):
        """Raises UserError if the keys of a step do not divide the queue, or the groups the batch."""
        super().check_batch(batch)
        keys = batch * (2 if self.symmetric else 1)
        if self.queue % keys:
            raise UserError(
                f"config.objective.queue={self.queue} is no multiple of the {keys} keys of a step",
                f"Set --config.objective.queue={-(-self.queue // keys) * keys}.",
            )
        if batch % self.bn_groups:
            raise UserError(
                f"config.objective.bn_groups={self.bn_groups} does not divide the batch of {batch}",
                "Set --config.objective.bn_groups=1, or a number that divides it.",
            )

    def heads(self, model, feature_dim):
        """The projector, without batch norm."""
        return {"projector": build_head(model, feature_dim, model.projector, hidden_norm=None)}

    def init_memory(self, key, params, images):
        """The momentum network, the queue of random rows, and where the next keys go."""
        queue = unit_rows(jax.random.normal(key, (self.queue, output_width(params["projector"]))))
        return {"target": momentum.start(params), "queue": queue, "pointer": jnp.int32(0)}

    def loss(self, run, views, memory, context):
        """`moco` of the projector's outputs, the momentum network's and the queue."""
        queries, keys = (views, views[::-1]) if self.symmetric else (views[:1], views[1:])
        h = run("backbone", queries, bn_groups=self.bn_groups)
        q = run("projector", h)
        target = momentum.follow(memory["target"], run.params, self.momentum)
        k = self._keys(context.key, run, target, keys)
        terms = [moco(*pair, memory["queue"], temperature=self.temperature) for pair in zip(q, k, strict=True)]
        loss = jnp.stack([loss for loss, _ in terms]).sum()
        found = jnp.stack([metrics["contrast_top1"] for _, metrics in terms]).mean()
        age = jnp.minimum(context.step, self.queue // (len(k) * len(k[0])))
        metrics = {"contrast_top1": found, "queue_age": age, "embedding_std": embedding_std(q[0])}
        kept = enqueue(memory["pointer"], jax.lax.stop_gradient(unit_rows(jnp.concatenate(k[::-1]))), self.queue)
        return Outcome(loss, h, metrics, {"target": target} | kept)

    def _keys(self, key, run, target, views) -> list[jax.Array]:
        """The keys of the views, shuffled over the groups of batch statistics and back."""
        if self.bn_groups == 1:
            return momentum.project(run, target, views)
        order = jax.random.permutation(key, len(views[0]))
        k = momentum.project(run, target, [view[order] for view in views], bn_groups=self.bn_groups)
        return [each[jnp.argsort(order)] for each in k]


def enqueue(pointer: jax.Array, keys: Float[jax.Array, "n d"], length: int) -> dict[str, Rows | jax.Array]:
    """The rows of the queue that the keys replace, and the next pointer."""
    at = (pointer + jnp.arange(len(keys), dtype=pointer.dtype)) % length
    return {"queue": Rows(at, keys), "pointer": (pointer + len(keys)) % length}
