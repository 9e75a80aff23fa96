"""A few steps of any method with a backbone of one convolution, on any number of devices."""

import jax
import numpy as np

from bt_jax import sharding
from bt_jax.config import keys
from bt_jax.state import Nets
from bt_jax.train import build, epochs, optimizer, step
from tests.support import invariance
from tests.support.runs import changed

ROWS, BATCH, TOTAL_STEPS = 1024, 8, 9
CONFIG = {"batch_size": 256, "model.projector": (16, 8), "model.dtype": "float32", "optim.warmup_epochs": 0.0}


def few_steps(objective, devices, steps, views_of, *, projector="replicated", **options):
    """(state, metrics) before the first step and after each, where the state's arrays lie, and the compiled step.

    Args:
      views_of: step -> two arrays of views. Two steps are an epoch.
      projector: "replicated" or "sharded".
      options: dotted keys of the config.
    """
    mesh, config = sharding.make_mesh(jax.devices()[:devices]), changed(keys.pretrain(), **CONFIG | options)
    nets = Nets(invariance.OneConv(), objective.heads(config.model, invariance.OneConv.feature_dim))
    plan = epochs.Plan(2, TOTAL_STEPS)
    tx, _ = optimizer.build_optimizer(config.optim, config.probe, config.batch_size, plan, objective)

    def create(key):
        return build.initial_state(key, nets, tx, objective, probe_classes=10, images=ROWS)

    layout = sharding.state_sharding(jax.eval_shape(create, jax.random.key(0)), mesh, projector, ROWS)
    state = jax.jit(create, out_shardings=layout)(jax.random.key(0))
    update = step.make_update(objective, nets, tx, **plan._asdict(), mesh=mesh, first_id=100, projector=projector)
    update = jax.jit(update, out_shardings=(layout, sharding.replicated(mesh)))
    states, compiled = [(jax.device_get(state), {})], None
    for number in range(steps):
        ids = np.arange(BATCH, dtype=np.int32)
        batch = {"id": ids + 100 + BATCH * (number % 2), "label": ids}
        views, batch = sharding.put_global((views_of(number), batch), mesh)
        compiled = compiled or update.lower(state, views, batch).compile()
        state, metrics = compiled(state, views, batch)
        states.append((jax.device_get(state), jax.device_get(metrics)))
    return states, layout, compiled


def drawn(number):
    """Two views of a batch, drawn."""
    return list(np.random.default_rng(number).standard_normal((2, BATCH, 8, 8, 3)).astype(np.float32))


def not_finite(number):
    """Two views of a batch that no step can learn from."""
    return [np.full_like(view, np.nan) for view in drawn(number)]
