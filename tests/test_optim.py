"""Schedule and LARS against the numbers of the reference; the others against stored numbers or steps by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bt_jax import optim
from bt_jax.train import optimizer


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def stored(fixtures):
    return np.load(fixtures / "optimizer.npz")


def _schedules(stored, rates=(0.2, 0.0048)):
    per_epoch, scale = int(stored["steps_per_epoch"]), int(stored["batch_size"]) / 256
    steps = {"warmup_steps": 10 * per_epoch, "total_steps": int(stored["epochs"]) * per_epoch}
    return [optim.warmup_cosine(rate * scale, **steps) for rate in rates]


def test_schedule_equals_the_reference(stored, x64):
    steps = jnp.arange(len(stored["lr"]))
    rates = np.stack([schedule(steps) for schedule in _schedules(stored)], axis=1)
    np.testing.assert_allclose(rates, stored["lr"], rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize(
    "warmup, total, start", [(70, 140, 0.0), (10, 300, 0.25), (0, 50, 0.0), (20, 20, 0.0), (20, 5, 0.0)]
)
def test_schedule_equals_its_formula(warmup, total, start, x64):
    """It does to the rounding of float64, also after the end, without a warm-up and without a cosine."""
    step = np.arange(max(warmup, total) + 20)
    rise = start + (1 - start) * step / max(warmup, 1)
    progress = np.clip((step - warmup) / max(total - warmup, 1), 0, 1)
    expected = np.where(step < warmup, rise, 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * progress)))
    rate = optim.warmup_cosine(3.0, warmup_steps=warmup, total_steps=total, start_factor=start, end_factor=0.01)(step)
    np.testing.assert_allclose(rate / 3.0, expected, rtol=0, atol=1e-15)


def _names(stored):
    return [key.removeprefix("init/") for key in stored.files if key.startswith("init/")]


def _run(tx, stored, steps, transform=lambda g: g):
    params = {name: jnp.asarray(stored[f"init/{name}"]) for name in _names(stored)}
    state, gradients = tx.init(params), {name: stored[f"grads/{name}"] for name in params}

    @jax.jit
    def update(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(steps):
        params, state = update({name: transform(gradients[name][step]) for name in params}, state, params)
        yield params


def _lars(stored, **changes):
    options = {key: float(stored[key]) for key in ("weight_decay", "momentum", "trust_coefficient")}
    return optim.lars(*_schedules(stored), **options | changes)


def test_sixty_lars_steps_equal_the_reference(stored, x64):
    """One parameter starts at zero, and one gradient is zero at step 5."""
    for step, params in enumerate(_run(_lars(stored), stored, 60)):
        for name, value in params.items():
            # Both sides use float64. Norms have up to 216 terms, in another order.
            np.testing.assert_allclose(value, stored[f"params/{name}"][step], rtol=1e-12, atol=1e-15, err_msg=name)


def test_optax_lars_is_another_optimizer(stored, x64):
    """It multiplies by the rate before the momentum: if the rate changes, the parameters differ."""
    *_, params = _run(optax.lars(_schedules(stored)[0], 1e-3, trust_coefficient=1e-3), stored, 60)
    name = "conv.kernel_oihw"
    assert np.abs(params[name] - stored[f"params/{name}"][59]).max() > 1e-6


def test_grad_scale_has_no_influence_on_lars_matrices(stored, x64):
    """It is the 1/W of the reference. Without decay, it changes the steps of one-dimensional parameters alone."""
    plain = optimizer.make_optimizer(_lars(stored, weight_decay=0.0), optax.sgd(0.1))
    scaled = optimizer.make_optimizer(_lars(stored, weight_decay=0.0), optax.sgd(0.1), grad_scale=1 / 16)
    grads = {
        "backbone": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
        "projector": {},
        "probe": {"w": jnp.ones(2)},
    }
    params = jax.tree.map(lambda g: 2 * g, grads)

    def second_update(tx):
        state = tx.init(params)
        _, state = tx.update(grads, state, params)  # the rate of step 0 is 0
        return tx.update(grads, state, params)[0]

    a, b = second_update(plain), second_update(scaled)
    np.testing.assert_allclose(b["backbone"]["kernel"], a["backbone"]["kernel"], rtol=1e-12)
    np.testing.assert_allclose(b["backbone"]["bias"], a["backbone"]["bias"] / 16, rtol=1e-12)
    np.testing.assert_allclose(b["probe"]["w"], a["probe"]["w"], rtol=1e-12)


def test_clipped_variant_by_hand(x64):
    """solo-learn: ratio = min(eta |p| / (|g| + wd |p| + eps) / lr, 1), times g + wd p; then momentum, then lr."""
    lr, wd, eta = 0.3, 0.1, 0.02
    tx = optim.lars(lr, 0.5, weight_decay=wd, momentum=0.9, trust_coefficient=eta, clip=True)
    params = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([1.0])}
    grads = {"w": jnp.array([[0.6, 0.8]]), "b": jnp.array([2.0])}
    updates, state = tx.update(grads, tx.init(params), params)
    ratio = min(eta * 5 / (1 + wd * 5 + 1e-8) / lr, 1)
    first = ratio * (np.array([[0.6, 0.8]]) + wd * np.array([[3.0, 4.0]]))
    np.testing.assert_allclose(updates["w"], -lr * first, rtol=1e-12)
    np.testing.assert_allclose(updates["b"], [-0.5 * 2.0], rtol=1e-12)
    updates, _ = tx.update(grads, state, params)
    np.testing.assert_allclose(updates["w"], -lr * 1.9 * first, rtol=1e-12)
    big = optim.lars(1e-4, 0.5, weight_decay=wd, trust_coefficient=eta, clip=True)
    updates, _ = big.update(grads, big.init(params), params)
    np.testing.assert_allclose(updates["w"], -1e-4 * first / ratio, rtol=1e-12)  # capped at 1


def test_three_steps_of_simclr_and_larc(fixtures, x64):
    """Kernel, bias and an array that starts at zero, at a rate that changes; larc was checked against apex."""
    stored = np.load(fixtures / "objectives.npz")
    names = ("kernel", "bias", "zero")

    def rate(step):
        return jnp.asarray(stored["optim/lrs"])[step]

    for name, make in {"lars_simclr": partial(optim.lars, rate_in_momentum=True), "larc": optim.larc}.items():
        tx = make(rate, rate, weight_decay=0.01, momentum=0.9, trust_coefficient=0.001)
        params = {each: jnp.asarray(stored[f"optim/start_{each}"]) for each in names}
        state = tx.init(params)
        for step in range(3):
            grads = {each: jnp.asarray(stored[f"optim/grads_{each}"][step]) for each in names}
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        for each in names:
            np.testing.assert_allclose(params[each], stored[f"optim/{name}_{each}"], rtol=1e-12, err_msg=name + each)


def test_by_epoch(x64):
    rates = optim.by_epoch(optim.warmup_cosine(3.0, warmup_steps=0, total_steps=9, end_factor=0.0), 3)(np.arange(12))
    expected = 1.5 * (1 + np.cos(np.pi * np.array([0, 1, 2, 3]) / 3))
    np.testing.assert_allclose(rates, np.repeat(expected, 3), rtol=0, atol=1e-15)


def test_sgd_by_hand(x64):
    tx = optim.sgd(0.1, 0.2, weight_decay=0.5, momentum=0.9)
    params = {"w": jnp.ones((1, 1)), "b": jnp.ones(1)}
    grads = {"w": jnp.full((1, 1), 2.0), "b": jnp.full(1, 2.0)}
    updates, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose([updates["w"][0, 0], updates["b"][0]], [-0.25, -0.5], rtol=1e-12)
    updates, _ = tx.update(grads, state, params)
    np.testing.assert_allclose(updates["w"][0, 0], -0.1 * 1.9 * 2.5, rtol=1e-12)
    both = optim.sgd(0.1, 0.2, weight_decay=0.5, momentum=0.9, nesterov=True)
    updates, _ = both.update(grads, both.init(params), params)
    np.testing.assert_allclose(updates["w"][0, 0], -0.1 * 1.9 * 2.5, rtol=1e-12)


def test_adamw_by_hand(x64):
    """Two steps with the constants of optax, and decay on matrices alone."""
    tx = optim.adamw(0.1, 0.2, weight_decay=0.5)
    params = {"w": jnp.full((1, 1), 3.0), "b": jnp.full(1, 3.0)}
    state, m, v = tx.init(params), 0.0, 0.0
    for step, g in enumerate((2.0, -1.0), 1):
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the integer power of its count
            updates, state = tx.update({"w": jnp.full((1, 1), g), "b": jnp.full(1, g)}, state, params)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        direction = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(updates["w"][0, 0], -0.1 * (direction + 0.5 * 3), rtol=1e-8)
        np.testing.assert_allclose(updates["b"][0], -0.2 * direction, rtol=1e-8)


def test_adam_by_hand(x64):
    """Two steps; the decay of kernels and biases is in the gradient."""
    tx = optim.adam(0.1, 0.2, weight_decay=0.5)
    params = {"w": jnp.full((1, 1), 3.0), "b": jnp.full(1, 3.0)}
    state, m, v = tx.init(params), 0.0, 0.0
    for step, g in enumerate((2.0, -1.0), 1):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update({"w": jnp.full((1, 1), g), "b": jnp.full(1, g)}, state, params)
        g += 0.5 * 3
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        direction = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(
            [updates["w"][0, 0], updates["b"][0]], [-0.1 * direction, -0.2 * direction], rtol=1e-8
        )


def test_the_state_of_lars_keeps_its_names():
    """Checkpoints name the arrays of the state by their place in it, so that another nesting would lose old runs."""
    state = optim.lars(lambda step: 0.1, lambda step: 0.1).init({"w": jnp.ones((2, 2)), "b": jnp.ones(2)})
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    inner = [f".inner_states['{part}'].inner_state" for part in ("biases", "weights")]
    assert names == {f"{inner[0]}[0].trace['b']", f"{inner[0]}[1].count"} | {
        f"{inner[1]}[1].trace['w']",
        f"{inner[1]}[2].count",
    }
