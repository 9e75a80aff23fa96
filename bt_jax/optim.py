"""The optimizer and the schedule of the reference, built from parts of optax, and the optimizers of other methods.

`optax.lars` differs from the reference: it multiplies by the learning rate before the momentum, and excludes no
parameter by default. This LARS has the order of reference main.py: decay, trust ratio, momentum, learning rate.
One-dimensional parameters (biases, batch-norm scales) have no decay, no trust ratio and another learning rate.
"""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from bt_jax.shapes import Float

Rate = float | optax.Schedule
Tree = Any  # parameters, gradients or optimizer state: nested dicts and tuples of arrays

TRUST_COEFFICIENT = 0.001  # reference main.py, class LARS, eta
MOMENTUM = 0.9  # reference main.py
WEIGHT_DECAY = 1.5e-6  # paper section 2.2; the default of reference main.py is 1e-6
EPS = 1e-8  # of the trust ratio in solo-learn solo/utils/lars.py and in apex parallel/LARC.py


def warmup_cosine(
    peak: float, *, warmup_steps: int, total_steps: int, end_factor: float = 0.001, start_factor: float = 0.0
) -> optax.Schedule:
    """A linear rise from `start_factor * peak` over `warmup_steps`, then half a cosine down to `end_factor * peak`.

    The defaults are those of reference main.py, `adjust_learning_rate`, which changes the rate every step. The warm-up
    of the paper takes 10 epochs.

    Args:
      peak: the rate after the rise, already scaled by the batch size.
      total_steps: number of steps to the end of the cosine; later steps have its last rate.

    Returns:
      A function of the step (int array) that returns a float32 rate, or float64 under x64.
    """
    shape = optax.warmup_cosine_decay_schedule(
        start_factor * peak,
        peak,
        warmup_steps,
        max(total_steps, warmup_steps + 1),  # optax needs at least one step for the cosine
        end_factor * peak,
    )
    return lambda step: shape(jnp.asarray(step, jnp.result_type(float)))


def by_epoch(schedule: optax.Schedule, steps_per_epoch: int) -> optax.Schedule:
    """The rate of the first step of an epoch in all its steps.

    Applied to half a cosine, this is torch's CosineAnnealingLR, as in the reference's evaluate.py, and the schedule of
    MoCo and SimSiam (facebookresearch/moco@7397dfe and simsiam@a7bc177, adjust_learning_rate).
    """
    return lambda step: schedule(jnp.asarray(step) // steps_per_epoch * steps_per_epoch)


def lars(
    lr_weights: Rate,
    lr_biases: Rate,
    *,
    weight_decay: float = WEIGHT_DECAY,
    momentum: float = MOMENTUM,
    trust_coefficient: float = TRUST_COEFFICIENT,
    clip: bool = False,
    rate_in_momentum: bool = False,
) -> optax.GradientTransformation:
    """The LARS of the reference. Each array is one layer: its norms are over all its elements.

    Args:
      lr_weights: rate of parameters with two or more dimensions.
      lr_biases: rate of one-dimensional parameters, which have neither decay nor trust ratio.
      clip: use solo-learn's variant for small data sets. Its trust ratio is eta |p| / (|g| + wd |p| + eps), divided by
        the current rate and capped at 1.
      rate_in_momentum: multiply by the rate before the momentum, as google-research/simclr@383d414 does
        (lars_optimizer.py:111-113). The two orders differ while the rate changes.
    """
    if clip:
        adapt = _clipped_trust_ratio(lr_weights, weight_decay, trust_coefficient)
    else:
        adapt = optax.chain(
            optax.add_decayed_weights(weight_decay), optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)
        )

    def momentum_and_rate(lr: Rate) -> Sequence[optax.GradientTransformation]:
        parts = optax.trace(momentum), optax.scale_by_learning_rate(lr)
        return parts[::-1] if rate_in_momentum else parts

    # Checkpoints have the state of one chain: a chain in a chain would not restore from them.
    weights, biases = (adapt, *momentum_and_rate(lr_weights)), momentum_and_rate(lr_biases)
    return _by_dimension(weights=optax.chain(*weights), biases=optax.chain(*biases))


def larc(
    lr_weights: Rate,
    lr_biases: Rate,
    *,
    weight_decay: float,
    momentum: float = MOMENTUM,
    trust_coefficient: float = TRUST_COEFFICIENT,
) -> optax.GradientTransformation:
    """SGD with the trust ratio eta |p| / (|g| + wd |p| + eps) for all parameters, one-dimensional ones included.

    This is apex's LARC without its clip (parallel/LARC.py at 2ec84eb), the optimizer of SwAV and DeepCluster-v2. An
    array of zeros, or with a gradient of zeros, has neither ratio nor decay.
    """

    def adapt(gradient: Float[jax.Array, "*shape"], parameter: Float[jax.Array, "*shape"]):
        ratio, zero = _trust_ratio(gradient, parameter, weight_decay, trust_coefficient)
        return jnp.where(zero, gradient, ratio * (gradient + weight_decay * parameter))

    adapted = optax.stateless(lambda updates, params: jax.tree.map(adapt, updates, params))
    return optax.chain(adapted, sgd(lr_weights, lr_biases, weight_decay=0.0, momentum=momentum))


def sgd(
    lr_weights: Rate, lr_biases: Rate, *, weight_decay: float, momentum: float, nesterov: bool = False
) -> optax.GradientTransformation:
    """torch.optim.SGD: the decay of all parameters is added to the gradient before the momentum."""

    def one(lr: Rate) -> optax.GradientTransformation:
        trace = optax.trace(momentum, nesterov=nesterov)
        return optax.chain(optax.add_decayed_weights(weight_decay), trace, optax.scale_by_learning_rate(lr))

    return _by_dimension(weights=one(lr_weights), biases=one(lr_biases))


def adamw(lr_weights: Rate, lr_biases: Rate, *, weight_decay: float) -> optax.GradientTransformation:
    """AdamW with the constants of optax; one-dimensional parameters have no decay."""
    return _by_dimension(weights=optax.adamw(lr_weights, weight_decay=weight_decay), biases=optax.adam(lr_biases))


def adam(lr_weights: Rate, lr_biases: Rate, *, weight_decay: float) -> optax.GradientTransformation:
    """torch.optim.Adam with the constants of optax: the decay of all parameters is added to the gradient."""
    plain = _by_dimension(weights=optax.adam(lr_weights), biases=optax.adam(lr_biases))
    return optax.chain(optax.add_decayed_weights(weight_decay), plain)


def _by_dimension(
    *, weights: optax.GradientTransformation, biases: optax.GradientTransformation
) -> optax.GradientTransformation:
    def label(params: Tree):
        return jax.tree.map(lambda p: "biases" if p.ndim == 1 else "weights", params)

    return optax.multi_transform({"weights": weights, "biases": biases}, label)


def _clipped_trust_ratio(lr: Rate, weight_decay: float, trust_coefficient: float) -> optax.GradientTransformation:
    rate: optax.Schedule = lr if callable(lr) else lambda count: lr

    def adapt(
        gradient: Float[jax.Array, "*shape"], parameter: Float[jax.Array, "*shape"], lr_now: ArrayLike
    ) -> Float[jax.Array, "*shape"]:
        ratio, zero = _trust_ratio(gradient, parameter, weight_decay, trust_coefficient)
        # At a rate of zero (step 0 of a warm-up from 0), the quotient is huge, and is capped at 1.
        ratio = jnp.minimum(ratio / jnp.maximum(lr_now, jnp.finfo(ratio.dtype).tiny), 1)
        return jnp.where(zero, 1, ratio) * (gradient + weight_decay * parameter)

    def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        count = cast(optax.ScaleByScheduleState, state).count
        scaled = jax.tree.map(lambda g, p: adapt(g, p, rate(count)), updates, params)
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(count))

    def init(params: Tree) -> Tree:
        del params
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

    return optax.GradientTransformation(init, update)


def _trust_ratio(
    gradient: Float[jax.Array, "*shape"],
    parameter: Float[jax.Array, "*shape"],
    weight_decay: float,
    trust_coefficient: float,
) -> tuple[jax.Array, jax.Array]:
    """eta |p| / (|g| + wd |p| + eps) of an array, and whether one of the two norms is zero."""
    # norm(x.ravel()) would gather an array that is split by its last axis.
    p, g = (jnp.sqrt(jnp.square(x).sum()) for x in (parameter, gradient))
    return trust_coefficient * p / (g + weight_decay * p + EPS), (p == 0) | (g == 0)
