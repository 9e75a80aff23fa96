"""The optimizer of a run: LARS, SGD or AdamW for the networks, SGD for the online probe; and one update by it."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from bt_jax import optim
from bt_jax.models import Tree
from bt_jax.state import TrainState
from bt_jax.train.epochs import Plan


def apply_gradient(
    state: TrainState,
    tx: optax.GradientTransformation,
    grads: dict[str, Tree],
    batch_stats: dict[str, Tree],
    loss: jax.Array,
) -> tuple[TrainState, jax.Array, jax.Array]:
    """One update. A loss or gradient that is not finite changes nothing but the counters.

    Returns:
      The next state, its memory as it was; the gradient's norm, without the online probe's; whether both were finite.
    """
    norm = optax.global_norm({name: grad for name, grad in grads.items() if name != "probe"})
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = cast(dict[str, Tree], optax.apply_updates(state.params, updates))
    taken = TrainState(state.step + 1, params, batch_stats, opt_state, jnp.zeros_like(state.bad_steps))
    # The counters inside the optimizer go on with the step, so that the rate applied stays the schedule's.
    kept = jax.tree.map(lambda a, b: a if jnp.issubdtype(a.dtype, jnp.integer) else b, opt_state, state.opt_state)
    skipped = TrainState(state.step + 1, state.params, state.batch_stats, kept, state.bad_steps + 1)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), taken, skipped)
    return dataclasses.replace(new, memory=state.memory), norm, finite


def make_optimizer(
    ssl: optax.GradientTransformation, probe: optax.GradientTransformation, *, grad_scale: float = 1.0
) -> optax.GradientTransformation:
    """One transformation over the whole params: `ssl` for backbone and heads, `probe` for the probe.

    Args:
      grad_scale: multiplies the gradient of backbone and heads before anything else sees it.
    """

    def labels(params):
        return {name: "probe" if name == "probe" else "ssl" for name in params}

    return optax.multi_transform({"ssl": optax.chain(optax.scale(grad_scale), ssl), "probe": probe}, labels)


def build_optimizer(config: ConfigDict, plan: Plan) -> tuple[optax.GradientTransformation, dict[str, optax.Schedule]]:
    """The optimizer of the whole params, and the two rates that the log shows."""
    options, scale = config.optim, config.batch_size / 256
    shape = {
        "warmup_steps": plan.steps(options.warmup_epochs),
        "total_steps": plan.total_steps,
        "end_factor": options.end_factor,
        "start_factor": options.start_factor,
    }
    weights = optim.warmup_cosine(options.lr_weights * scale, **shape)
    biases = optim.warmup_cosine(options.lr_biases * scale, **shape)
    if options.name == "lars":
        ssl = optim.lars(
            weights,
            biases,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            trust_coefficient=options.trust_coefficient,
            clip=options.clip,
        )
    elif options.name == "sgd":
        ssl = optim.sgd(weights, biases, weight_decay=options.weight_decay, momentum=options.momentum)
    else:
        ssl = optim.adamw(weights, biases, weight_decay=options.weight_decay)
    probe_rate = optim.warmup_cosine(
        config.probe.lr * scale, warmup_steps=0, total_steps=plan.total_steps, end_factor=0
    )
    probe = optim.sgd(probe_rate, probe_rate, weight_decay=config.probe.weight_decay, momentum=config.probe.momentum)
    tx = make_optimizer(ssl, probe, grad_scale=options.grad_scale)
    return tx, {"lr_weights": weights, "lr_biases": biases}
