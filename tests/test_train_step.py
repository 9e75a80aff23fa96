"""The whole update against eight steps of the reference, and the step on one and on eight devices."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bt_jax import augment, convert, models, optim, sharding, train_step
from bt_jax import state as state_lib
from bt_jax.state import Nets, TrainState


def _by_rule(name, shape, seed):
    """Weights of the fixtures: a function of the torchvision name (prefixed) and the seed alone."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape)
    if name.endswith("running_mean"):
        return 0.1 * rng.standard_normal(shape)
    if len(shape) == 1:
        return name.endswith("weight") + 0.1 * rng.standard_normal(shape)
    return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))


def _reference_state(nets, tx, seed):
    """The state whose networks have the fixtures' weights, float64."""
    zeros = jax.tree.map(lambda a: np.zeros(a.shape), jax.eval_shape(nets.backbone.init, jax.random.key(0)))
    named = convert.to_torch(zeros, arch="resnet18")
    backbone = convert.from_torch(
        {k: _by_rule(f"backbone.{k}", v.shape, seed) for k, v in named.items() if v.ndim}, arch="resnet18"
    )
    zeros = jax.tree.map(lambda a: np.zeros(a.shape), jax.eval_shape(nets.projector.init, jax.random.key(0)))
    named = convert.projector_to_torch(zeros)
    projector = convert.projector_from_torch({k: _by_rule(k, v.shape, seed) for k, v in named.items() if v.ndim})
    params = {"backbone": backbone["params"], "projector": projector["params"], "probe": {"kernel": np.zeros((512, 1))}}
    stats = {"backbone": backbone["batch_stats"], "projector": projector["batch_stats"]}
    params, stats = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, stats))
    zero = jnp.zeros([], jnp.int32)
    return TrainState(zero, params, stats, tx.init(params), zero)


def test_eight_steps_equal_the_reference(fixtures):
    stored = np.load(fixtures / "trajectory.npz")
    seed = int(np.load(fixtures / "backbones.npz")["seed"])
    args = json.loads(str(stored["learning_rate_args"]))
    with jax.enable_x64(True):
        nets = Nets(
            models.build("resnet18", dtype=jnp.float64),
            models.build_projector(512, (64, 64, 64), dtype=jnp.float64),
        )
        steps = {"warmup_steps": 10 * args["steps_per_epoch"], "total_steps": args["epochs"] * args["steps_per_epoch"]}
        first, scale = int(stored["first_schedule_step"]), args["batch_size"] / 256

        def rate(peak):
            schedule = optim.warmup_cosine(peak * scale, **steps)
            return lambda count: schedule(count + first)

        lars = optim.lars(rate(args["weights"]), rate(args["biases"]), weight_decay=float(stored["weight_decay"]))
        tx = train_step.make_optimizer(lars, optax.sgd(0.0))
        state = _reference_state(nets, tx, seed)
        x = np.random.default_rng([seed, 11]).standard_normal((8, 2, 16, 3, 32, 32))
        x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]
        x = np.moveaxis(x, 3, -1)
        update = jax.jit(train_step.make_update(nets, tx, lambd=float(stored["lambda"])))
        names = [str(name) for name in stored["param_names"]]
        for step in range(8):
            state, shown = update(state, list(x[step]), None)
            # The log is float32: half a unit in its last place is 6e-8.
            np.testing.assert_allclose(shown["train/loss"], stored["loss"][step], rtol=1e-7)
            norms = _norms(state)
            # float64 on both sides; a step amplifies the rounding of the one before, as training does
            np.testing.assert_allclose([norms[n] for n in names], stored["param_l2_norm"][step], rtol=1e-10)
            wanted = np.sqrt(np.square(stored["grad_l2_norm"][step]).sum())
            np.testing.assert_allclose(shown["train/grad_norm"], wanted, rtol=1e-7)
        torch = _torch_named(state)
        for key in (k for k in stored.files if k.startswith("final/")):
            wanted = stored[key]
            np.testing.assert_allclose(
                torch[key.removeprefix("final/")], wanted, rtol=0, atol=1e-9 * np.abs(wanted).max(), err_msg=key
            )
        h = nets.backbone.apply(state.encoder(), x[0, 0], train=False)
        wanted = stored["final_eval_features"]
        np.testing.assert_allclose(h, wanted, rtol=0, atol=1e-8 * np.abs(wanted).max())


def _torch_named(state):
    backbone = convert.to_torch(state.encoder(), arch="resnet18")
    projector = convert.projector_to_torch(
        {"params": state.params["projector"], "batch_stats": state.batch_stats["projector"]}
    )
    return {f"backbone.{k}": v for k, v in backbone.items()} | projector


def _norms(state):
    return {name: np.linalg.norm(value) for name, value in _torch_named(state).items()}


# ------------------------------------------------------------------------------------- any number of devices, same run

RECIPE = augment.cifar(16)


def _tiny():
    # Without zero-init: behind a branch that starts at zero the gradients are rounding noise, which LARS scales up.
    nets = Nets(
        models.build("resnet18", width=0.125, small_images=True, zero_init_residual=False),
        models.build_projector(64, (48, 48), bias=True),
    )
    tx = train_step.make_optimizer(optim.lars(0.3, 1e-5), optax.sgd(0.1))
    return nets, tx


def _five_steps(devices):
    """Five steps on so many devices, each with other images; the views of the first one; losses and the last state."""
    nets, tx = _tiny()
    mesh = sharding.make_mesh(jax.devices()[:devices])
    update = train_step.make_update(nets, tx, lambd=0.0051)
    create = jax.jit(lambda key: state_lib.create(key, nets, tx, 10), out_shardings=sharding.replicated(mesh))
    state = create(train_step.stream(0, train_step.INIT))
    step = jax.jit(train_step.make_pretrain_step(update, RECIPE, seed=0), out_shardings=sharding.replicated(mesh))
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(5):
        batch = {
            "image": rng.integers(0, 256, (32, 16, 16, 3), np.uint8),
            "id": rng.permutation(1000)[:32].astype(np.int32),
            "label": rng.integers(0, 10, 32, np.int32),
        }
        state, shown = step(state, sharding.put_batch(batch, mesh))
        losses.append(float(shown["train/loss"]))
    return np.array(losses), jax.device_get(state)


@pytest.fixture(scope="module")
def on_one_device():
    return _five_steps(1)


@pytest.mark.parametrize("devices", (4, 8))
def test_devices_change_nothing(devices, on_one_device):
    losses, state = _five_steps(devices)
    # float32: sums over the batch in another order differ by about 1e-7 each, and five steps through batch statistics
    # of 32 small images amplify that a hundredfold. Statistics of a device's own rows would be off by per cents.
    np.testing.assert_allclose(losses, on_one_device[0], rtol=2e-4)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(on_one_device[1].params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-3 * max(np.abs(b).max(), 1e-2))


def test_nonfinite_step_changes_nothing_but_the_count(on_one_device):
    nets, _ = _tiny()
    rate = optim.warmup_cosine(0.3, warmup_steps=0, total_steps=10)
    tx = train_step.make_optimizer(optim.lars(rate, 1e-5), optax.sgd(0.1))
    update = jax.jit(train_step.make_update(nets, tx, lambd=0.0051))
    state = state_lib.create(jax.random.key(0), nets, tx, 10)
    views = [jnp.full((8, 16, 16, 3), jnp.nan)] * 2
    new, shown = update(state, views, jnp.zeros(8, jnp.int32))
    assert (int(new.step), int(new.bad_steps)) == (1, 1) and shown["train/bad_steps"] == 1
    for a, b in zip(
        jax.tree.leaves((new.params, new.batch_stats)), jax.tree.leaves((state.params, state.batch_stats)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    rng = np.random.default_rng(0)
    good = [jnp.asarray(rng.standard_normal((8, 16, 16, 3)), jnp.float32) for _ in range(2)]
    counters = [leaf for leaf in jax.tree.leaves(new.opt_state) if jnp.issubdtype(leaf.dtype, jnp.integer)]
    assert counters and all(int(counter) == 1 for counter in counters)  # the schedule goes on
    new, _ = update(new, good, jnp.zeros(8, jnp.int32))
    assert int(new.bad_steps) == 0
    assert not np.array_equal(new.params["backbone"]["conv1"]["kernel"], state.params["backbone"]["conv1"]["kernel"])
