"""Every method: loss and gradients against the numbers of official codes, alone and as its `Objective.loss` uses it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bt_jax.objectives
from bt_jax import sharding
from bt_jax.objectives import align_uniform, functions, registry
from tests.support.played_networks import Played, context

# (method, stored loss, options): the arguments of the method's function are the arrays of these names.
CASES = [
    ("align_uniform", "loss", {}),
    ("barlow_twins", "loss", {}),
    ("byol", "loss", {}),
    ("drlim", "loss", {}),
    ("infonce", "loss", {}),
    ("moco", "loss_t007", {"temperature": 0.07}),
    ("moco", "loss_t02", {}),
    ("simclr", "loss_t01", {}),
    ("simclr", "loss_t02", {"temperature": 0.2}),
    ("simclr", "loss_t05", {"temperature": 0.5}),
    ("simsiam", "loss", {}),
    ("vicreg", "loss", {}),
]
SECTIONS = {"barlow_twins": "barlow"}  # of the fixtures, where it is not the method's name
FIXED = {"moco": ("queue",)}  # arrays that have no gradient
BY_HAND = {"direct_pred", "supervised"}  # in their own tests
EXACT, SINGLE = ("float64", 1e-13, 1e-12), ("float32", 2e-6, 2e-6)  # of the loss, of the largest entry of a gradient


@pytest.fixture(scope="module")
def numbers(fixtures):
    """tests/fixtures/objectives.npz: float64, `SECTION/NAME`; `loss.d_z1` is the gradient of `loss` by `z1`."""
    with np.load(fixtures / "objectives.npz") as file:
        return dict(file)


def test_every_method_is_compared():
    assert {name for name, *_ in CASES} | BY_HAND == set(bt_jax.objectives.NAMES)


@pytest.mark.parametrize("dtype, close, gradients_close", (EXACT, SINGLE), ids=("float64", "float32"))
@pytest.mark.parametrize("name, stored, options", CASES, ids=lambda each: each if isinstance(each, str) else "")
def test_loss_and_gradients_equal_the_official_codes(numbers, name, stored, options, dtype, close, gradients_close):
    section = SECTIONS.get(name, name)
    prefix = f"{section}/{stored}.d_"
    gradients = {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}
    with jax.enable_x64(dtype == "float64"):
        inputs = {key: jnp.asarray(numbers[f"{section}/{key}"], dtype) for key in [*gradients, *FIXED.get(name, ())]}
        assert gradients and all(each.dtype == dtype for each in inputs.values())
        function = jax.value_and_grad(lambda inputs: registry.evaluate_loss(name, inputs, **options)[0])
        loss, found = jax.jit(function)(inputs)
        np.testing.assert_allclose(loss, numbers[f"{section}/{stored}"], rtol=close)
        for key, wanted in gradients.items():
            np.testing.assert_allclose(found[key], wanted, rtol=0, atol=gradients_close * np.abs(wanted).max())
        for key in FIXED.get(name, ()):
            assert not np.any(found[key])


ONE_EACH = {name: (name, *case) for name, *case in CASES}.values()


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("name, stored, options", ONE_EACH, ids=lambda each: each if isinstance(each, str) else "")
def test_any_number_of_devices_gives_the_official_numbers(numbers, name, stored, options, devices):
    """Every device has other rows of the batch. The queue and the bilinear form are on all of them."""
    section = SECTIONS.get(name, name)
    prefix = f"{section}/{stored}.d_"
    gradients = {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}
    mesh = sharding.make_mesh(jax.devices()[:devices])
    with jax.enable_x64(True):
        inputs = {}
        for key in [*gradients, *FIXED.get(name, ())]:
            layout = sharding.replicated(mesh) if key in ("queue", "w") else sharding.batch_sharding(mesh)
            inputs[key] = jax.device_put(numbers[f"{section}/{key}"], layout)
        function = jax.value_and_grad(lambda inputs: registry.evaluate_loss(name, inputs, **options)[0])
        loss, found = jax.jit(function)(inputs)
        np.testing.assert_allclose(loss, numbers[f"{section}/{stored}"], rtol=1e-13)
        for key, wanted in gradients.items():
            np.testing.assert_allclose(found[key], wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


def arrays(numbers, section, *names):
    return [jnp.asarray(numbers[f"{section}/{name}"]) for name in names]


def played(numbers, name):
    """The networks and the memory with which a method's loss is the stored one, and what else its options are."""

    def rows(*names):
        return arrays(numbers, name, *names)

    if name in ("simclr", "drlim"):
        return Played({"projector": rows("z1", "z2")}), {}, {}
    if name == "align_uniform":
        return Played({"projector": rows("x", "y")}), {}, {}
    if name == "infonce":
        z, c, w = rows("z", "c", "w")
        return Played({"projector": [c, z]}, {"bilinear": {"fc0": {"kernel": w.T}}}), {}, {}
    if name == "simsiam":
        return Played({"projector": rows("z1", "z2"), "predictor": rows("p1", "p2")}), {}, {}
    momentum = {"target": {"backbone": {}, "projector": {}}}
    if name == "byol":
        outputs = {"predictor": rows("p1", "p2"), "momentum projector": rows("t1", "t2")}
        return Played(outputs | {"projector": rows("p1", "p2")}), momentum, {}
    q, k, queue = rows("q", "k", "queue")
    memory = momentum | {"queue": queue, "pointer": jnp.int32(0)}
    return Played({"projector": [q], "momentum projector": [k]}), memory, {"queue": len(queue), "bn_groups": 1}


RIVALS = [case for case in CASES if case[0] not in ("barlow_twins", "vicreg")]


@pytest.mark.parametrize("name, stored, options", RIVALS, ids=lambda each: each if isinstance(each, str) else "")
def test_the_loss_of_a_step_is_that_of_the_function(numbers, name, stored, options):
    """With the networks' outputs in their places."""
    with jax.enable_x64(True):
        networks, memory, more = played(numbers, name)
        objective = registry.METHODS[name].objective(**options, **more)
        views = [jnp.zeros((32, 1))] * 2
        outcome = jax.jit(lambda memory: objective.loss(networks, views, memory, context()))(memory)
        np.testing.assert_allclose(outcome.loss, numbers[f"{name}/{stored}"], rtol=1e-13)
        assert set(objective.metrics) <= set(outcome.metrics)


def test_negatives_are_those_of_all_devices(numbers):
    """SimCLR on 4 devices with other rows on each; the other number is that of two devices that share no negatives."""
    with jax.enable_x64(True):
        z1, z2 = arrays(numbers, "simclr", "z1", "z2")
        loss = jax.jit(lambda z1, z2: registry.evaluate_loss("simclr", {"z1": z1, "z2": z2}, temperature=0.5)[0])
        mesh = sharding.make_mesh(jax.devices()[:4])
        found = loss(*jax.device_put((z1, z2), sharding.batch_sharding(mesh)))
        np.testing.assert_allclose(found, numbers["simclr/loss_t05"], rtol=1e-13)
        local = np.mean([loss(*pair) for pair in zip(np.split(z1, 2), np.split(z2, 2), strict=True)])
        np.testing.assert_allclose(local, numbers["simclr/wrong_local_negatives_t05"], rtol=1e-13)
        assert abs(local / found - 1) > 0.2


def test_what_travels_for_simclr():
    """One copy of the embeddings, and sums; no device sends rows to and fro."""
    mesh = sharding.make_mesh(jax.devices()[:4])
    rows = sharding.batch_sharding(mesh)
    z = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=rows)
    function = jax.value_and_grad(lambda z1, z2: registry.evaluate_loss("simclr", {"z1": z1, "z2": z2})[0], (0, 1))
    text = jax.jit(function, out_shardings=(None, (rows, rows))).lower(z, z).compile().as_text()
    kinds = re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\(", text)
    assert sorted(kinds) == ["all-gather", "all-reduce"]


def test_the_sum_of_the_views_is_twice_the_mean(numbers):
    inputs = dict(zip(("z1", "z2"), arrays(numbers, "simclr", "z1", "z2"), strict=True))
    mean, total = (registry.evaluate_loss("simclr", inputs, sum_of_views=each)[0] for each in (False, True))
    assert float(total) == 2 * float(mean)


def test_alignment_and_uniformity_are_the_authors(numbers):
    with jax.enable_x64(True):
        x, y = (functions.unit_rows(each) for each in arrays(numbers, "align_uniform", "x", "y"))
        for alpha, stored in ((2.0, "align"), (1.0, "align_alpha1")):
            value, gradient = jax.value_and_grad(align_uniform.align)(x, y, alpha)
            np.testing.assert_allclose(value, numbers[f"align_uniform/{stored}"], rtol=1e-13)
            assert np.isfinite(gradient).all()
        np.testing.assert_allclose(align_uniform.uniform(x, 2.0), numbers["align_uniform/uniform"], rtol=1e-13)


def test_alignment_and_uniformity_with_a_queue(numbers):
    """The form of moco_align_uniform."""
    with jax.enable_x64(True):
        x, y, queue = arrays(numbers, "align_uniform", "x", "y", "queue")
        inputs = {"x": x, "y": y, "queue": queue}
        function = jax.value_and_grad(
            lambda each: registry.evaluate_loss("align_uniform", each, alignment=3.0, t=3.0)[0]
        )
        loss, found = jax.jit(function)(inputs)
    np.testing.assert_allclose(loss, numbers["align_uniform/moco_loss"], rtol=1e-13)
    for key, stored in {"x": "d_q", "y": "d_k"}.items():
        wanted = numbers[f"align_uniform/moco_loss.{stored}"]
        np.testing.assert_allclose(found[key], wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())
    assert not np.any(found["queue"])


@pytest.mark.parametrize("name", ["align_uniform", "drlim"])
def test_equal_embeddings_have_a_finite_gradient(name):
    """At a distance of zero."""
    keys = ("x", "y") if name == "align_uniform" else ("z1", "z2")
    options = {"alpha": 1.0} if name == "align_uniform" else {}
    inputs = dict.fromkeys(keys, jnp.ones((4, 3)))
    loss, found = jax.value_and_grad(lambda inputs: registry.evaluate_loss(name, inputs, **options)[0])(inputs)
    assert np.isfinite(loss) and all(np.isfinite(each).all() for each in found.values())


def test_lengths_near_zero(numbers):
    """Rows as short as 3e-13 and 0: each code has its own least length."""
    with jax.enable_x64(True):
        x, y = arrays(numbers, "eps", "x", "y")
        np.testing.assert_allclose(functions.unit_rows(x), numbers["eps/torch_normalize"], rtol=1e-13)
        np.testing.assert_allclose(functions.unit_rows(x, 1e-6), numbers["eps/tf_l2_normalize"], rtol=1e-13)
        cosines = (functions.unit_rows(x, 1e-8) * functions.unit_rows(y, 1e-8)).sum(axis=1)
        np.testing.assert_allclose(cosines, numbers["eps/torch_cosine"], rtol=1e-12, atol=1e-300)
        gradient = jax.grad(lambda x: (functions.unit_rows(x) * y).sum())(x)
        assert np.isfinite(gradient).all()
