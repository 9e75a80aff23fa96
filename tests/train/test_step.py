"""The step on one and on eight devices, and in two processes: the same run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bt_jax import models, optim, sharding
from bt_jax.messages import UserError
from bt_jax.models.split_projector import SplitProjector
from bt_jax.objectives import barlow_twins
from bt_jax.state import Nets
from bt_jax.train import build, optimizer, step
from tests.support import hlo, invariance
from tests.support.processes import run_two

pytestmark = pytest.mark.usefixtures("compiled_quickly")
slow = pytest.mark.slow


# ------------------------------------------------------------------------------------- any number of devices, same run


@pytest.fixture(scope="module")
def on_one_device(compiled_quickly):
    return invariance.flat(invariance.five_steps(sharding.make_mesh(jax.devices()[:1]), "replicated", "covariance"))


def assert_same_run(found, wanted):
    """float32: sums over the batch in another order differ by about 1e-7 of the largest term.

    After five steps the losses were equal to 2e-7. Everything else is equal to 2e-5, or to 2e-4 with XLA's own sums
    compiled without optimizations: biases before a batch norm, whose true gradient is zero, hold nothing but such
    rounding. What the peers compute is off by per cents.
    """
    np.testing.assert_allclose(found["losses"], wanted["losses"], rtol=2e-6)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-3 * max(np.abs(value).max(), 1), err_msg=name)


# Every number of devices, form and head; the other pairs of them are slow.
SOME = [
    (1, "replicated", "gram"),
    (2, "sharded", "covariance"),
    (4, "replicated", "gram"),
    (8, "replicated", "covariance"),
    (8, "sharded", "gram"),
]
OTHERS = [case for case in ((n, *case) for n in (2, 4, 8) for case in invariance.CASES) if case not in SOME]


@pytest.mark.parametrize("devices, head, form", [*SOME, *(pytest.param(*case, marks=slow) for case in OTHERS)])
def test_devices_change_nothing(devices, head, form, on_one_device):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    assert_same_run(invariance.flat(invariance.five_steps(mesh, head, form)), on_one_device)


def assert_same_views(found, wanted):
    # The sums of a resize are blocked by the number of images a device has: 3e-6 of a unit, 2e-4 of a grey level.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("devices", [pytest.param(2, marks=slow), 8])
def test_views_are_the_same_pixels(devices):
    wanted = invariance.views(sharding.make_mesh(jax.devices()[:1]))
    assert_same_views(invariance.views(sharding.make_mesh(jax.devices()[:devices])), wanted)
    assert np.abs(wanted[0] - wanted[1]).max() > 1


@pytest.mark.parametrize("arch", ["resnet10", pytest.param("resnet18", marks=slow)])
def test_a_resnet_on_eight_devices(arch, resnet10):
    # Without zero-init: behind a branch that starts at zero the gradients are rounding noise, which LARS scales up.
    nets = Nets(
        models.build(arch, width=0.125, small_images=True, zero_init_residual=False),
        {"projector": models.build_projector(64, (48, 48), bias=True)},
    )
    runs = [
        invariance.five_steps(sharding.make_mesh(jax.devices()[:n]), head, "auto", networks=nets, steps=2)
        for n, head in ((1, "replicated"), (8, "sharded"))
    ]
    # Batch statistics of 32 small images and the kinks of ReLU amplify rounding: parameters were equal to 1e-2 of the
    # largest after one step and to 3e-2 after two. A gradient that is not summed over the devices is off by 0.9.
    np.testing.assert_allclose(runs[1][0], runs[0][0], rtol=2e-4)
    for a, b in zip(jax.tree.leaves(runs[1][1].params), jax.tree.leaves(runs[0][1].params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=6e-2 * max(np.abs(b).max(), 1e-2))


def test_statistics_of_a_device_alone_are_caught(on_one_device):
    """The peers' bug: each device standardises its own rows, and the losses are averaged."""
    mesh = sharding.make_mesh(jax.devices()[:4])
    exact = barlow_twins.barlow_twins

    def local(z1, z2, *, lambd, form, **_):
        def own(z1, z2):
            return jax.lax.pmean(exact(z1, z2, lambd=lambd, form=form), sharding.AXIS)

        rows = jax.sharding.PartitionSpec(sharding.AXIS)
        return jax.shard_map(own, mesh=mesh, in_specs=rows, out_specs=jax.sharding.PartitionSpec())(z1, z2)

    planted = invariance.flat(invariance.five_steps(mesh, "replicated", "covariance", loss=local))
    with pytest.raises(AssertionError, match="rtol=2e-06"):
        assert_same_run(planted, on_one_device)
    assert abs(planted["losses"][0] / on_one_device["losses"][0] - 1) > 0.01


ALL = [f"{head}/{form}" for head, form in invariance.CASES]


@pytest.mark.parametrize("what", [("sharded/gram",), pytest.param(("views", *ALL), marks=slow)], ids=["one", "all"])
def test_two_processes_of_four_devices(what, on_one_device, tmp_path):
    """jax.distributed on this machine: both processes end with the state of one device."""
    outs = [tmp_path / "0.npz", tmp_path / "1.npz"]
    said = run_two(
        "tests.support.invariance",
        lambda address, process: (address, process, outs[process], *what),
        seconds=300,
        environment={"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )
    assert [status for status, *_ in said] == [0, 0], said
    for out in outs:
        stored = dict(np.load(out))
        if "views" in what:
            assert_same_views(stored["views"], invariance.views(sharding.make_mesh(jax.devices()[:1])))
        for case in set(what) - {"views"}:
            prefix = f"{case}/"
            found = {name.removeprefix(prefix): v for name, v in stored.items() if name.startswith(prefix)}
            assert_same_run(found, on_one_device)


@pytest.mark.parametrize("clip", (False, True))
def test_sharded_head_holds_no_whole_matrix(clip):
    """Of the projector's (256, 512) kernel no device has the whole: not as parameter, gradient, momentum or scratch."""
    mesh = sharding.make_mesh(jax.devices()[:8])
    nets = Nets(invariance.OneConv(), {"projector": models.build_projector(24, (256, 512), bias=True)})
    whole = 256 * 512
    if not clip:
        assert max(buffers(nets, mesh, "replicated", clip)) >= whole  # so the measure can see one
    assert max(buffers(nets, mesh, "sharded", clip)) < whole


def buffers(nets, mesh, head, clip):
    """Elements of every array in the compiled update for a batch of 16 images."""
    tx = optimizer.make_optimizer(optim.lars(0.3, 1e-3, clip=clip), optax.sgd(0.1))

    def create(key):
        return build.initial_state(key, nets, tx, barlow_twins.BarlowTwins(), probe_classes=10)

    shapes = jax.eval_shape(create, jax.random.key(0))
    layout = sharding.state_sharding(shapes, mesh, head)
    update = step.make_update(barlow_twins.BarlowTwins(mesh=mesh), nets, tx, mesh=mesh, projector=head)
    views = [jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.float32, sharding=sharding.batch_sharding(mesh))] * 2
    state = sharding.abstract(shapes, layout)
    batch = {"id": jnp.arange(16)}
    jitted = jax.jit(
        lambda state, views: update(state, views, batch), out_shardings=(layout, sharding.replicated(mesh))
    )
    return hlo.buffer_elements(jitted.lower(state, views).compile().as_text())


def test_sharded_head_refuses_widths_that_do_not_divide():
    mesh = sharding.make_mesh(jax.devices()[:8])
    with pytest.raises(UserError, match="cannot be split over 8 devices"):
        SplitProjector(models.build_projector(24, (64, 60)), mesh)


BATCH = {"id": jnp.arange(8)}


def _created(nets, tx):
    return jax.jit(lambda key: build.initial_state(key, nets, tx, barlow_twins.BarlowTwins(), probe_classes=10))(
        jax.random.key(0)
    )


def test_the_probe_does_not_teach_the_encoder():
    nets = invariance.nets()
    tx = optimizer.make_optimizer(optim.lars(0.3, 1e-3), optax.sgd(0.1))
    update = jax.jit(step.make_update(barlow_twins.BarlowTwins(), nets, tx))
    state = _created(nets, tx)
    views = [jax.random.normal(jax.random.key(i), (8, 16, 16, 3)) for i in range(2)]
    (with_labels, _), (without, _) = (update(state, views, BATCH | labels) for labels in ({"label": jnp.arange(8)}, {}))
    for name in ("backbone", "projector"):
        for a, b in zip(jax.tree.leaves(with_labels.params[name]), jax.tree.leaves(without.params[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert np.abs(with_labels.params["probe"]["kernel"] - without.params["probe"]["kernel"]).max() > 1e-4


def test_nonfinite_step_changes_nothing_but_the_count():
    nets = invariance.nets()
    rate = optim.warmup_cosine(0.3, warmup_steps=0, total_steps=10)
    tx = optimizer.make_optimizer(optim.lars(rate, 1e-5), optax.sgd(0.1))
    update = jax.jit(step.make_update(barlow_twins.BarlowTwins(), nets, tx))
    state = _created(nets, tx)
    views = [jnp.full((8, 16, 16, 3), jnp.nan)] * 2
    new, shown = update(state, views, BATCH | {"label": jnp.zeros(8, jnp.int32)})
    assert (int(new.step), int(new.bad_steps)) == (1, 1) and shown["train/bad_steps"] == 1
    for a, b in zip(
        jax.tree.leaves((new.params, new.batch_stats)), jax.tree.leaves((state.params, state.batch_stats)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    rng = np.random.default_rng(0)
    good = [jnp.asarray(rng.standard_normal((8, 16, 16, 3)), jnp.float32) for _ in range(2)]
    counters = [leaf for leaf in jax.tree.leaves(new.opt_state) if jnp.issubdtype(leaf.dtype, jnp.integer)]
    assert counters and all(int(counter) == 1 for counter in counters)  # the schedule goes on
    new, _ = update(new, good, BATCH | {"label": jnp.zeros(8, jnp.int32)})
    assert int(new.bad_steps) == 0
    assert not np.array_equal(new.params["backbone"]["conv"]["kernel"], state.params["backbone"]["conv"]["kernel"])
