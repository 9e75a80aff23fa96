"""MoCo, BYOL and DirectPred: queue, schedule and computed predictor against the stored numbers of official codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax.messages import UserError
from bt_jax.objectives import byol, direct_pred, moco, momentum
from bt_jax.objectives.base import memory_after_step
from bt_jax.objectives.functions import unit_rows
from tests.support.played_networks import Played, context


@pytest.fixture(scope="module")
def numbers(fixtures):
    with np.load(fixtures / "objectives.npz") as file:
        return dict(file)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


TARGET = {"backbone": {}, "projector": {}}


# MoCo -----------------------------------------------------------------------------------------------------------------


def test_the_queue_after_each_of_four_batches(numbers, x64):
    """The fourth batch is written over the first."""
    memory = {"queue": jnp.asarray(numbers["moco/queue"]), "pointer": jnp.int32(0)}
    length = len(memory["queue"])
    steps = zip(*(numbers[f"moco/update_{name}"] for name in ("keys", "queues", "pointers")), strict=True)
    for keys, queue, pointer in steps:
        new = moco.enqueue(memory["pointer"], jnp.asarray(keys), length)
        lost = memory_after_step(memory, new, jnp.bool_(False))
        jax.tree.map(np.testing.assert_array_equal, lost, memory)
        memory = memory_after_step(memory, new, jnp.bool_(True))
        np.testing.assert_array_equal(memory["queue"], queue)
        assert memory["pointer"] == pointer and memory["pointer"].dtype == jnp.int32


def test_the_symmetric_form_adds_both_directions_before_it_enqueues():
    """The keys of the first view come first."""
    q1, q2, k1, k2 = jax.random.normal(jax.random.key(0), (4, 2, 3))
    queue = unit_rows(jax.random.normal(jax.random.key(9), (8, 3)))
    memory = {"target": TARGET, "queue": queue, "pointer": jnp.int32(0)}
    networks = Played({"projector": [q1, q2], "momentum projector": [k2, k1]})
    objective = moco.MoCo(queue=8, symmetric=True, bn_groups=1)
    outcome = objective.loss(networks, [jnp.zeros((2, 1))] * 2, memory, context())
    wanted = sum(moco.moco(q, k, memory["queue"])[0] for q, k in ((q1, k2), (q2, k1)))
    np.testing.assert_allclose(outcome.loss, wanted, rtol=1e-6)
    np.testing.assert_array_equal(outcome.memory["queue"].values, unit_rows(jnp.concatenate([k1, k2])))
    assert outcome.memory["pointer"] == 4 and len(outcome.features) == 2


def test_keys_are_normalised_in_another_order():
    """So that a query shares no group of batch statistics with its key; they come back in the batch's order."""
    seen = []

    def run(name, inputs, **options):
        seen.append((name, np.asarray(inputs[0][:, 0]), options.get("bn_groups", 1)))
        return inputs

    rows = jnp.arange(16.0)[:, None]
    for groups in (4, 1):
        (found,) = moco.MoCo(bn_groups=groups)._keys(jax.random.key(0), run, TARGET, [rows])
        np.testing.assert_array_equal(found, rows)
    assert [(name, groups) for name, _, groups in seen] == [("backbone", 4), ("projector", 1)] + [
        ("backbone", 1),
        ("projector", 1),
    ]
    assert sorted(seen[0][1]) == list(range(16)) and list(seen[0][1]) != list(range(16))
    np.testing.assert_array_equal(seen[2][1], rows[:, 0])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"queue": 10}, "queue=10 is no multiple of the 4 keys of a step.*objective.queue=12"),
        ({"queue": 12, "symmetric": True}, "queue=12 is no multiple of the 8 keys of a step.*objective.queue=16"),
        ({"queue": 12, "bn_groups": 3}, "bn_groups=3 does not divide the batch of 4"),
    ],
)
def test_lengths_that_do_not_divide(options, message):
    with pytest.raises(UserError, match=message):
        moco.MoCo(**options).check_batch(4)


# BYOL -----------------------------------------------------------------------------------------------------------------


def test_the_average_and_its_schedule(numbers, x64):
    for start in (0.996, 0.99):
        stored = numbers[f"byol/tau_{str(start).replace('.', '')}"]
        total = float(numbers["byol/tau_total"])
        found = [byol.tau(float(step), total, start) for step in numbers["byol/tau_steps"]]
        np.testing.assert_allclose(found, stored, rtol=1e-15)
    online, old = ({name: {"w": numbers[f"byol/ema_{of}"]} for name in TARGET} for of in ("online", "target"))
    new = momentum.follow(old, online, 0.996)
    np.testing.assert_allclose(new["backbone"]["w"], numbers["byol/ema_new_tau0996"], rtol=1e-15)


# DirectPred -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["code", "paper"])
def test_correlation_and_predictor_over_three_steps(numbers, x64, rule):
    """The memory after each step; W is computed by the F of the same step, and predicts in the next."""
    objective = direct_pred.DirectPred(rho=0.3, eps=0.1, rule=rule)
    d = numbers["direct_pred/f"].shape[-1]
    memory = {"target": TARGET, "f": jnp.zeros((d, d)), "w": jnp.eye(d), "steps": jnp.int32(0)}
    views, t = [jnp.zeros((32, 1))] * 2, jax.random.normal(jax.random.key(0), (2, 32, d))
    for z, wanted in zip(numbers["direct_pred/f"], numbers[f"direct_pred/w_{rule}"], strict=True):
        networks = Played({"projector": list(jnp.asarray(z)), "momentum projector": list(t)})
        outcome = objective.loss(networks, views, memory, context())
        np.testing.assert_allclose(outcome.loss, by_hand(z, t, memory["w"]), rtol=1e-13)
        memory = outcome.memory
        np.testing.assert_allclose(memory["w"], wanted, rtol=0, atol=1e-13 * np.abs(wanted).max())
    np.testing.assert_allclose(memory["f"], numbers["direct_pred/correlation"], rtol=1e-13)
    assert 1 < outcome.metrics["dimensions"] <= d


def by_hand(z, t, w):
    p, t = z @ np.asarray(w).T, np.asarray(t)[::-1]
    cosines = (p * t).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(t, axis=-1)
    return -2 * cosines.mean(axis=1).sum()


def test_without_a_predictor_it_is_byol(numbers, x64):
    """W = I: BYOL's loss less 4, and its gradient."""
    p1, p2, t1, t2 = (jnp.asarray(numbers[f"byol/{name}"]) for name in ("p1", "p2", "t1", "t2"))
    function = jax.value_and_grad(lambda z1, z2: direct_pred.direct_pred(z1, z2, t1, t2, jnp.eye(16))[0], (0, 1))
    loss, gradients = function(p1, p2)
    np.testing.assert_allclose(loss, numbers["byol/loss"] - 4, rtol=1e-12)
    for found, name in zip(gradients, ("p1", "p2"), strict=True):
        np.testing.assert_allclose(found, numbers[f"byol/loss.d_{name}"], rtol=0, atol=1e-15)


def test_nothing_but_projections_has_a_gradient():
    arrays = jax.random.normal(jax.random.key(0), (5, 4, 4))
    gradients = jax.grad(lambda arrays: direct_pred.direct_pred(*arrays)[0])(arrays)
    assert [bool(np.any(each)) for each in gradients] == [True, True, False, False, False]


def test_features_that_are_all_zero_have_a_predictor():
    """W is in memory, where a NaN would stay."""
    assert np.isfinite(direct_pred.computed_predictor(jnp.zeros((4, 4)), eps=0.01, rule="code")).all()
