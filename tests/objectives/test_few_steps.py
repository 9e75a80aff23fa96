"""A few steps of every rival: alike on one device and four, the official order of averages, steps that are lost."""

import jax
import numpy as np
import pytest

from bt_jax.objectives import registry
from bt_jax.plan import collectives
from tests.support.few_steps import TOTAL_STEPS, drawn, few_steps, not_finite

OPTIONS = {"moco": {"queue": 32, "bn_groups": 4, "momentum": 0.9}, "byol": {"momentum": 0.8}}
OPTIONS |= {"direct_pred": {"momentum": 0.9}}
RIVALS = [name for name in registry.NAMES if name not in ("barlow_twins", "supervised")]
SGD = {"optim.name": "sgd", "optim.lr_weights": 0.1, "optim.lr_biases": 0.1, "optim.weight_decay": 0.0}
# What travels in a step besides sums: the embeddings of the others where an image is compared with all; for MoCo the
# images of the keys in their new order, and the keys for the queue. The rest are batch statistics and gradients.
ALL_GATHERS = {"align_uniform": 2, "drlim": 2, "infonce": 1, "moco": 5, "simclr": 1}
ALL_REDUCES = {"align_uniform": 12, "byol": 24, "direct_pred": 18, "drlim": 15, "infonce": 13, "moco": 4, "simclr": 12}
ALL_REDUCES |= {"simsiam": 25, "vicreg": 27}
LOST = 2  # the step that is not finite


def views_of(number):
    return not_finite(number) if number == LOST else drawn(number)


@pytest.fixture(scope="module", params=RIVALS)
def rival(request, compiled_quickly):
    """The method and its states before and after each of four steps, of which one is lost, on four devices."""
    objective = registry.build({"name": request.param, **OPTIONS.get(request.param, {})})
    states, _, compiled = few_steps(objective, 4, 4, views_of, **SGD)
    return objective, states, (request.param, compiled)


def test_one_device_gives_the_numbers_of_four(rival):
    """Loss and gradient by SGD; float32, and sums in another order."""
    objective, on_four, _ = rival
    alone, *_ = few_steps(objective, 1, 2, views_of, **SGD)
    assert on_four[1][1]["train/grad_norm"] > 1e-3
    for (one, metrics), (four, metrics_of_four) in zip(alone, on_four[: len(alone)], strict=True):
        for name in metrics:
            np.testing.assert_allclose(metrics_of_four[name], metrics[name], rtol=2e-4, atol=1e-5, err_msg=name)
        for part in ("params", "batch_stats", "memory"):
            trees = getattr(one, part), getattr(four, part)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=0, atol=2e-5), *trees)


def test_a_projector_that_is_split_over_the_devices(rival):
    """Trains as one of which every device has a copy, with its momentum network."""
    objective, on_four, _ = rival
    split, *_ = few_steps(objective, 4, 2, views_of, projector="sharded", **SGD)
    for (state, metrics), (wanted, wanted_metrics) in zip(split, on_four[: len(split)], strict=True):
        for name in metrics:
            np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=2e-4, atol=1e-5, err_msg=name)
        trees = (state.params, state.batch_stats, state.memory), (wanted.params, wanted.batch_stats, wanted.memory)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), *trees)


def test_collectives_of_a_step(rival):
    """No row of an image, a feature or a label is sent to and fro."""
    name, compiled = rival[2]
    found = {kind: each["count"] for kind, each in collectives.count(compiled.as_text(), 4).items()}
    gathers = {"all-gather": ALL_GATHERS[name]} if name in ALL_GATHERS else {}
    assert found == {"all-reduce": ALL_REDUCES[name]} | gathers


def test_a_lost_step_moves_nothing(rival):
    """And the next one trains again."""
    _, states, _ = rival
    (before, _), (after, metrics), (then, _) = states[LOST], states[LOST + 1], states[LOST + 2]
    assert metrics["train/bad_steps"] == 1
    jax.tree.map(np.testing.assert_array_equal, (before.params, before.memory), (after.params, after.memory))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), (after.params, after.memory), (then.params, then.memory))
    assert all(any(jax.tree.leaves(each)) for each in (moved[0]["backbone"], *moved[1].values()))


def test_the_momentum_network_follows(rival):
    """In a step it becomes the average with the parameters that the step begins with."""
    objective, states, _ = rival
    if "target" not in states[0][0].memory:
        pytest.skip("no momentum network")
    start = states[0][0]
    networks = {name: start.params[name] for name in start.memory["target"]}
    jax.tree.map(np.testing.assert_array_equal, start.memory["target"], networks)
    for number in (0, 1, 3):
        (before, _), (after, _) = states[number : number + 2]
        rate = objective.momentum
        if type(objective).__name__ == "BYOL":  # the rate after the step before
            progress = (number - 1) / TOTAL_STEPS
            rate = 1 - (1 - rate) * (np.cos(np.pi * progress) + 1) / 2 if number else 1.0
        wanted = jax.tree.map(
            lambda old, new, rate=rate: rate * old + (1 - rate) * new,
            before.memory["target"],
            {name: before.params[name] for name in networks},
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), after.memory["target"], wanted)
        if type(objective).__name__ == "BYOL":
            np.testing.assert_allclose(states[number + 1][1]["train/tau"], rate, rtol=1e-6)
        if type(objective).__name__ == "MoCo":  # 32 rows, 8 keys a step
            assert states[number + 1][1]["train/queue_age"] == number
    last = states[-1][0]
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), last.memory["target"], networks)
    assert max(jax.tree.leaves(apart)) > 1e-4
