"""A method outside the package that uses every feature of `Objective`, and a config for it.

python -m bt_jax.main --config=tests/support/new_method.py --workdir=RUN
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bt_jax import models
from bt_jax.objectives import registry
from bt_jax.objectives.base import Metric, Objective, Outcome, Rows
from bt_jax.objectives.functions import unit_rows
from tests.support.runs import tiny


@dataclasses.dataclass(frozen=True)
class Everything(Objective):
    """A predictor, a momentum network, a queue, prototypes, and a bank of all images, split into halves every epoch."""

    rate: float = 0.9
    unit_rows, frozen_epochs, constant_rate = ("prototypes",), {"prototypes": 1.0}, ("predictor",)
    metrics: ClassVar = {"agreement": Metric("Agreement of prediction and target", "Should rise.", term=True)}

    def heads(self, model, feature_dim):
        projector = super().heads(model, feature_dim)["projector"]
        prototypes = models.build_projector(projector.feature_dim, (4,))
        predictor = models.build_projector(projector.feature_dim, (16, 8))
        return {"projector": projector, "predictor": predictor, "prototypes": prototypes}

    def init_memory(self, key, params, images):
        target = {name: params[name] for name in ("backbone", "projector")}
        bank = {"bank": jnp.zeros((images, 8)), "halves": jnp.full(images, -1), "epoch": jnp.zeros([], jnp.int32)}
        return bank | {"target": target, "queue": unit_rows(jax.random.normal(key, (32, 8)))}

    def loss(self, run, views, memory, context):
        h = run("backbone", views)
        p = run("predictor", run("projector", h, together=True))
        online = {name: run.params[name] for name in memory["target"]}
        target = jax.tree.map(lambda a, b: self.rate * a + (1 - self.rate) * b, memory["target"], online)
        t = run("projector", run("backbone", views, weights=target["backbone"]), weights=target["projector"])
        (scores,) = run("prototypes", [unit_rows(jax.lax.stop_gradient(p[0]))])
        p, t = [unit_rows(rows) for rows in p], [unit_rows(jax.lax.stop_gradient(rows)) for rows in t]
        epoch = context.step // context.steps_per_epoch
        halves = jax.lax.cond(epoch > memory["epoch"], _assign, lambda m: m["halves"], memory)
        agreement = ((p[0] * t[1]).sum(1).mean() + (p[1] * t[0]).sum(1).mean()) / 2
        loss = -0.1 * jax.nn.log_softmax(scores).max(1).mean()
        loss += 0.1 * jax.nn.logsumexp(p[0] @ memory["queue"].T, 1).mean() - agreement
        loss += jnp.where(halves[context.rows] >= 0, jnp.square(p[0][:, 0] - halves[context.rows]), 0).mean()
        place = (context.step * len(t[0]) + jnp.arange(len(t[0]))) % len(memory["queue"])
        new_memory = {"queue": Rows(place, t[1]), "bank": Rows(context.rows, t[0]), "halves": halves, "epoch": epoch}
        return Outcome(loss, h, {"agreement": agreement}, new_memory | {"target": jax.lax.stop_gradient(target)})


def _assign(memory):
    return jnp.where(jnp.square(memory["bank"]).sum(1) > 0, (memory["bank"][:, 0] > 0).astype(jnp.int32), -1)


registry.METHODS["everything"] = registry.Method(Everything, None)


def get_config(arg=None):
    """The smallest form of the quickstart with this method and a projector of eight outputs."""
    del arg
    config = tiny(**{"model.projector": (16, 8), "log.every_steps": 1})
    with config.unlocked():
        config.objective = {"name": "everything", **registry.keys("everything")}
    return config
