"""The whole update against eight steps of the reference."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bt_jax import convert, models, optim
from bt_jax.objectives.barlow_twins import BarlowTwins
from bt_jax.state import Nets, TrainState
from bt_jax.train import optimizer
from bt_jax.train import step as train_step


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
    zeros = jax.tree.map(lambda a: np.zeros(a.shape), jax.eval_shape(nets.heads["projector"].init, jax.random.key(0)))
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
            {"projector": models.build_projector(512, (64, 64, 64), dtype=jnp.float64)},
        )
        steps = {"warmup_steps": 10 * args["steps_per_epoch"], "total_steps": args["epochs"] * args["steps_per_epoch"]}
        first, scale = int(stored["first_schedule_step"]), args["batch_size"] / 256

        def rate(peak):
            schedule = optim.warmup_cosine(peak * scale, **steps)
            return lambda count: schedule(count + first)

        lars = optim.lars(rate(args["weights"]), rate(args["biases"]), weight_decay=float(stored["weight_decay"]))
        tx = optimizer.make_optimizer(lars, optax.sgd(0.0))
        state = _reference_state(nets, tx, seed)
        x = np.random.default_rng([seed, 11]).standard_normal((8, 2, 16, 3, 32, 32))
        x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]
        x = np.moveaxis(x, 3, -1)
        update = jax.jit(train_step.make_update(BarlowTwins(lambd=float(stored["lambda"])), nets, tx))
        names = [str(name) for name in stored["param_names"]]
        for step in range(8):
            state, shown = update(state, list(x[step]), {"id": jnp.arange(x.shape[2])})
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
