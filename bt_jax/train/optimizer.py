"""The optimizer of a run: that of `config.optim` for the networks, SGD for the online probe; and one update by it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import optax

from bt_jax import optim
from bt_jax.config.pretraining import Optim, Probe
from bt_jax.models import Tree
from bt_jax.objectives import functions
from bt_jax.objectives.base import Objective
from bt_jax.state import TrainState
from bt_jax.train.epochs import Plan

Parts = Mapping[str, Sequence[str]]  # network -> its parts, the outermost keys of its parameters


def select(params: Mapping[str, Tree], trained: Parts | None) -> dict[str, Tree]:
    """The trained parts of the params of a state; all of them for None."""
    if trained is None:
        return dict(params)
    return {name: {part: params[name][part] for part in parts} for name, parts in trained.items() if parts}


def merge(params: Mapping[str, Tree], moving: Mapping[str, Tree], trained: Parts | None) -> dict[str, Tree]:
    """The params with those that `select` gives replaced by `moving`."""
    if trained is None:
        return dict(moving)
    return {name: tree | moving.get(name, {}) for name, tree in params.items()}


def apply_gradient(
    state: TrainState,
    tx: optax.GradientTransformation,
    grads: dict[str, Tree],
    batch_stats: dict[str, Tree],
    loss: jax.Array,
    trained: Parts | None = None,
) -> tuple[TrainState, jax.Array, jax.Array]:
    """One update. If the loss, or a gradient other than the probe's, is not finite, only the counters change.

    Args:
      grads: of the trained parts, see `select`.

    Returns:
      The next state, its memory as it was; the gradient's norm, without the online probe's; whether the loss and
      this norm are finite.
    """
    norm = optax.global_norm({name: grad for name, grad in grads.items() if name != "probe"})
    moving = select(state.params, trained)
    updates, opt_state = tx.update(grads, state.opt_state, moving)
    moving = cast(dict[str, Tree], optax.apply_updates(moving, updates))
    params = merge(state.params, moving, trained)
    taken = TrainState(state.step + 1, params, batch_stats, opt_state, jnp.zeros_like(state.bad_steps))
    # The counters of the optimizer count skipped steps too, so that the rate follows the schedule.
    kept = jax.tree.map(lambda a, b: a if jnp.issubdtype(a.dtype, jnp.integer) else b, opt_state, state.opt_state)
    skipped = TrainState(state.step + 1, state.params, state.batch_stats, kept, state.bad_steps + 1)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), taken, skipped)
    return dataclasses.replace(new, memory=state.memory), norm, finite


def make_optimizer(
    ssl: optax.GradientTransformation,
    probe: optax.GradientTransformation,
    *,
    grad_scale: float = 1.0,
    heads: Mapping[str, optax.GradientTransformation] | None = None,
) -> optax.GradientTransformation:
    """One transformation over the whole params: `ssl` for backbone and heads, `probe` for the probe.

    Args:
      grad_scale: multiplies the gradient of backbone and heads before anything else sees it.
      heads: by name, those that have a transformation of their own in place of `ssl`.
    """
    own = {name: optax.chain(optax.scale(grad_scale), tx) for name, tx in {"ssl": ssl, **(heads or {})}.items()}

    def labels(params):
        return {name: name if name == "probe" or name in own else "ssl" for name in params}

    return optax.multi_transform(own | {"probe": probe}, labels)


def frozen_at_first(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    """Delays the first update by a number of steps, in which only the counters of its schedules move.

    A gradient of zero would not be enough: decay and momentum change parameters without one.
    """

    def init(params: Tree) -> Tree:
        return jnp.zeros([], jnp.int32), tx.init(params)

    def update(grads: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        count, old = state
        updates, new = tx.update(grads, old, params)
        kept = jax.tree.map(lambda a, b: a if jnp.issubdtype(a.dtype, jnp.integer) else b, new, old)
        free = count >= steps
        updates = jax.tree.map(lambda u: jnp.where(free, u, jnp.zeros_like(u)), updates)
        return updates, (optax.safe_increment(count), jax.tree.map(lambda a, b: jnp.where(free, a, b), new, kept))

    return optax.GradientTransformation(init, update)


def onto_unit_rows() -> optax.GradientTransformation:
    """Changes the updates so that every kernel (in, out) has columns of length 1 after them.

    The official SwAV does it in place before a forward pass (main_swav.py); the sequence of kernels is the same.
    """

    def update(updates: Tree, params: Tree) -> Tree:
        return jax.tree.map(lambda u, p: unit_columns(p + u) - p if p.ndim == 2 else u, updates, params)

    return optax.stateless(update)


def unit_columns(kernel: jax.Array) -> jax.Array:
    """A kernel (in, out) whose columns, the weights of one output each, have length 1."""
    return functions.unit_rows(kernel.T).T


def build_optimizer(
    options: Optim, probe: Probe, batch_size: int, plan: Plan, objective: Objective
) -> tuple[optax.GradientTransformation, dict[str, optax.Schedule]]:
    """The optimizer of the whole params with the method's rules for its heads, and the two rates that the log has."""
    scale = batch_size / 256
    shape = {
        "warmup_steps": plan.steps(options.warmup_epochs),
        "total_steps": plan.total_steps,
        "end_factor": options.end_factor,
        "start_factor": options.start_factor,
    }
    peaks = options.lr_weights * scale, options.lr_biases * scale
    weights, biases = (optim.warmup_cosine(peak, **shape) for peak in peaks)
    if options.by_epoch:
        weights, biases = (optim.by_epoch(rate, plan.steps_per_epoch) for rate in (weights, biases))
    heads: dict[str, optax.GradientTransformation] = {}
    for name in sorted({*objective.unit_rows, *objective.frozen_epochs, *objective.constant_rate}):
        heads[name] = _ssl(options, *(peaks if name in objective.constant_rate else (weights, biases)))
        if name in objective.unit_rows:
            heads[name] = optax.chain(heads[name], onto_unit_rows())
        if name in objective.frozen_epochs:
            heads[name] = frozen_at_first(heads[name], plan.steps(objective.frozen_epochs[name]))
    probe_rate = optim.warmup_cosine(probe.lr * scale, warmup_steps=0, total_steps=plan.total_steps, end_factor=0)
    probe_tx = optim.sgd(probe_rate, probe_rate, weight_decay=probe.weight_decay, momentum=probe.momentum)
    tx = make_optimizer(_ssl(options, weights, biases), probe_tx, grad_scale=options.grad_scale, heads=heads)
    return tx, {"lr_weights": weights, "lr_biases": biases}


def _ssl(options: Optim, weights: optim.Rate, biases: optim.Rate) -> optax.GradientTransformation:
    """The optimizer that `config.optim` names, for backbone and heads."""
    decay = {"weight_decay": options.weight_decay}
    momentum = decay | {"momentum": options.momentum}
    ratio = momentum | {"trust_coefficient": options.trust_coefficient}
    match options.name:
        case "lars":
            more = {"clip": options.clip, "rate_in_momentum": options.rate_in_momentum}
            return optim.lars(weights, biases, **ratio, **more)
        case "larc":
            return optim.larc(weights, biases, **ratio)
        case "sgd":
            return optim.sgd(weights, biases, **momentum)
        case "adam":
            return optim.adam(weights, biases, **decay)
    return optim.adamw(weights, biases, **decay)
