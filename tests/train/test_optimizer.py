"""What a method may ask of the optimizer for its heads: frozen at first, a constant rate, kernels of length 1."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bt_jax.config import keys
from bt_jax.objectives.base import Objective
from bt_jax.train import epochs, optimizer
from tests.support.runs import changed

STEPS = 5
RATES = 0.5 * (1 + np.cos(np.pi * np.arange(STEPS) / STEPS))  # the cosine of the config below


class Rules(Objective):
    unit_rows, frozen_epochs, constant_rate = ("prototypes",), {"late": 1.0}, ("predictor",)


def trained(names):
    """Kernels (steps, 2, 3) of heads that all have the same start and gradients, by SGD; two steps are an epoch."""
    options = {"optim.name": "sgd", "optim.lr_weights": 1.0, "optim.weight_decay": 0.1, "optim.momentum": 0.5}
    options |= {"optim.end_factor": 0.0, "optim.warmup_epochs": 0.0, "batch_size": 256}
    config = changed(keys.pretrain(), **options)
    tx, _ = optimizer.build_optimizer(config.optim, config.probe, config.batch_size, epochs.Plan(2, STEPS), Rules())
    params = {name: {"kernel": jnp.asarray(start())} for name in names}
    state, kernels = tx.init(params), {name: [] for name in names}
    update = jax.jit(tx.update)
    for step in range(STEPS):
        updates, state = update({name: {"kernel": gradient(step)} for name in names}, state, params)
        params = optax.apply_updates(params, updates)
        for name in names:
            kernels[name].append(params[name]["kernel"])
    return {name: np.array(each) for name, each in kernels.items()}


def start():
    kernel = np.random.default_rng(9).standard_normal((2, 3))
    return kernel / np.linalg.norm(kernel, axis=0)


def gradient(step):
    return np.random.default_rng(step).standard_normal((2, 3))


def by_hand(rates, first=0, length_one=False):
    kernel, velocity, kernels = start(), 0.0, []
    for step in range(STEPS):
        if step >= first:
            velocity = 0.5 * velocity + gradient(step) + 0.1 * kernel
            kernel = kernel - rates[step] * velocity
            if length_one:
                kernel = kernel / np.linalg.norm(kernel, axis=0)
        kernels.append(kernel)
    return np.array(kernels)


def test_rules_for_heads():
    """float64. A frozen head gathers no momentum, and its rate is later that of the step."""
    with jax.enable_x64(True):
        found = trained(["projector", "late", "predictor", "prototypes"])
    close = dict(rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["projector"], by_hand(RATES), **close)
    np.testing.assert_allclose(found["late"], by_hand(RATES, first=2), **close)
    np.testing.assert_array_equal(found["late"][:2], [start()] * 2)
    np.testing.assert_allclose(found["predictor"], by_hand(np.ones(STEPS)), **close)
    np.testing.assert_allclose(found["prototypes"], by_hand(RATES, length_one=True), **close)


def test_only_trained_parts_move():
    params = {"backbone": {"a": 1, "b": 2}, "classifier": {"kernel": 3, "bias": 4}}
    assert optimizer.select(params, None) == params
    parts = {"backbone": ("b",), "classifier": ("kernel", "bias")}
    assert optimizer.select(params, parts) == {"backbone": {"b": 2}, "classifier": {"kernel": 3, "bias": 4}}
    assert optimizer.select(params, {"backbone": ()} | {"classifier": ("bias",)}) == {"classifier": {"bias": 4}}
