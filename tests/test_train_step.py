"""The whole update against eight steps of the reference, and the step on one and on eight devices."""

import json
import os
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import hlo
import invariance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bt_jax import convert, losses, models, optim, sharding, train_step
from bt_jax import state as state_lib
from bt_jax.errors import UserError
from bt_jax.head import SplitProjector
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


@pytest.fixture(scope="module")
def on_one_device():
    return invariance.flat(invariance.five_steps(sharding.make_mesh(jax.devices()[:1]), "replicated", "covariance"))


def assert_same_run(found, wanted):
    """float32: sums over the batch in another order differ by about 1e-7 of the largest term.

    After five steps the losses were equal to 2e-7 and everything else to 2e-5; the projector's biases, whose true
    gradient is zero, hold nothing but such rounding. What the peers compute is off by per cents.
    """
    np.testing.assert_allclose(found["losses"], wanted["losses"], rtol=2e-6)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-4 * max(np.abs(value).max(), 1), err_msg=name)


@pytest.mark.parametrize(
    "devices, head, form", [(1, "replicated", "gram"), *((n, *case) for n in (2, 4, 8) for case in invariance.CASES)]
)
def test_devices_change_nothing(devices, head, form, on_one_device):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    assert_same_run(invariance.flat(invariance.five_steps(mesh, head, form)), on_one_device)


def assert_same_views(found, wanted):
    # The sums of a resize are blocked by the number of images a device has: 3e-6 of a unit, 2e-4 of a grey level.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("devices", (2, 8))
def test_views_are_the_same_pixels(devices):
    wanted = invariance.views(sharding.make_mesh(jax.devices()[:1]))
    assert_same_views(invariance.views(sharding.make_mesh(jax.devices()[:devices])), wanted)
    assert np.abs(wanted[0] - wanted[1]).max() > 1


def test_a_resnet_on_eight_devices():
    # Without zero-init: behind a branch that starts at zero the gradients are rounding noise, which LARS scales up.
    nets = Nets(
        models.build("resnet18", width=0.125, small_images=True, zero_init_residual=False),
        models.build_projector(64, (48, 48), bias=True),
    )
    runs = [
        invariance.five_steps(sharding.make_mesh(jax.devices()[:n]), head, "auto", networks=nets, steps=3)
        for n, head in ((1, "replicated"), (8, "sharded"))
    ]
    # Twenty layers of batch statistics of 32 small images amplify the rounding tenfold a step; on JAX 0.10 and 0.12 the
    # parameters were equal to 4e-3 of the largest.
    np.testing.assert_allclose(runs[1][0], runs[0][0], rtol=2e-4)
    for a, b in zip(jax.tree.leaves(runs[1][1].params), jax.tree.leaves(runs[0][1].params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-2 * max(np.abs(b).max(), 1e-2))


def test_statistics_of_a_device_alone_are_caught(on_one_device):
    """The peers' bug: each device standardises its own rows, and the losses are averaged."""
    mesh = sharding.make_mesh(jax.devices()[:4])
    exact = losses.barlow_twins

    def local(z1, z2, *, lambd, form, **_):
        def own(z1, z2):
            return jax.lax.pmean(exact(z1, z2, lambd=lambd, form=form), sharding.AXIS)

        rows = jax.sharding.PartitionSpec(sharding.AXIS)
        return jax.shard_map(own, mesh=mesh, in_specs=rows, out_specs=jax.sharding.PartitionSpec())(z1, z2)

    planted = invariance.flat(invariance.five_steps(mesh, "replicated", "covariance", loss=local))
    with pytest.raises(AssertionError, match="rtol=2e-06"):
        assert_same_run(planted, on_one_device)
    assert abs(planted["losses"][0] / on_one_device["losses"][0] - 1) > 0.01


def test_two_processes_of_four_devices(on_one_device, tmp_path):
    """jax.distributed on this machine: both processes end with the state of one device."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script = Path(invariance.__file__)
    outs = [tmp_path / "0.npz", tmp_path / "1.npz"]
    environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), address, str(process), str(out)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process, out in enumerate(outs)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], said
    wanted_views = invariance.views(sharding.make_mesh(jax.devices()[:1]))
    for out in outs:
        stored = dict(np.load(out))
        assert_same_views(stored.pop("views"), wanted_views)
        for head, form in invariance.SOME_CASES:
            prefix = f"{head}/{form}/"
            found = {name.removeprefix(prefix): v for name, v in stored.items() if name.startswith(prefix)}
            assert_same_run(found, on_one_device)


@pytest.mark.parametrize("clip", (False, True))
def test_sharded_head_holds_no_whole_matrix(clip):
    """Of the projector's (256, 512) kernel no device has the whole: not as parameter, gradient, momentum or scratch."""
    mesh = sharding.make_mesh(jax.devices()[:8])
    nets = Nets(invariance.OneConv(), models.build_projector(24, (256, 512), bias=True))
    whole = 256 * 512
    assert max(buffers(nets, mesh, "replicated", clip)) >= whole  # so the measure can see one
    assert max(buffers(nets, mesh, "sharded", clip)) < whole


def buffers(nets, mesh, head, clip):
    """Elements of every array in the compiled update for a batch of 16 images."""
    tx = train_step.make_optimizer(optim.lars(0.3, 1e-3, clip=clip), optax.sgd(0.1))

    def create(key):
        return state_lib.create(key, nets, tx, 10)

    shapes = jax.eval_shape(create, jax.random.key(0))
    layout = sharding.state_sharding(shapes, mesh, head)
    update = train_step.make_update(nets, tx, lambd=0.0051, mesh=mesh, head=head)
    views = [jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.float32, sharding=sharding.batch_sharding(mesh))] * 2
    state = sharding.abstract(shapes, layout)
    jitted = jax.jit(lambda state, views: update(state, views, None), out_shardings=(layout, sharding.replicated(mesh)))
    return hlo.buffer_elements(jitted.lower(state, views).compile().as_text())


def test_sharded_head_refuses_widths_that_do_not_divide():
    mesh = sharding.make_mesh(jax.devices()[:8])
    with pytest.raises(UserError, match="cannot be split over 8 devices"):
        SplitProjector(models.build_projector(24, (64, 60)), mesh)


def test_the_probe_does_not_teach_the_encoder():
    nets = invariance.nets()
    tx = train_step.make_optimizer(optim.lars(0.3, 1e-3), optax.sgd(0.1))
    update = jax.jit(train_step.make_update(nets, tx, lambd=0.0051))
    state = state_lib.create(jax.random.key(0), nets, tx, 10)
    views = [jax.random.normal(jax.random.key(i), (8, 16, 16, 3)) for i in range(2)]
    (with_labels, _), (without, _) = (update(state, views, labels) for labels in (jnp.arange(8), None))
    for name in ("backbone", "projector"):
        for a, b in zip(jax.tree.leaves(with_labels.params[name]), jax.tree.leaves(without.params[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert np.abs(with_labels.params["probe"]["kernel"] - without.params["probe"]["kernel"]).max() > 1e-4


def test_nonfinite_step_changes_nothing_but_the_count():
    nets = invariance.nets()
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
    assert not np.array_equal(new.params["backbone"]["conv"]["kernel"], state.params["backbone"]["conv"]["kernel"])
