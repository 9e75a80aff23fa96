"""Whose batch statistics a network uses, and what it leaves of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax import models, sharding
from bt_jax.objectives.forward import Forward


@pytest.fixture(scope="module")
def net():
    return models.build_projector(3, (5, 2))


@pytest.fixture(scope="module")
def variables(net):
    return net.init(jax.random.key(0))


def forward(net, variables):
    return Forward({"head": net}, {"head": variables["params"]}, {"head": variables["batch_stats"]})


VIEWS = np.random.default_rng(0).standard_normal((2, 8, 3)).astype(np.float32)
VIEWS[1] += 1
CLOSE = {"rtol": 0, "atol": 1e-6}


def test_together_is_one_batch_of_statistics(net, variables):
    run = forward(net, variables)
    found = run("head", list(VIEWS), together=True)
    wanted, stats = net.apply(variables, jnp.concatenate(VIEWS), train=True)
    np.testing.assert_allclose(jnp.concatenate(found), wanted, **CLOSE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), run.batch_stats["head"], stats)
    apart = forward(net, variables)("head", list(VIEWS))
    for one, view in zip(apart, VIEWS, strict=True):
        np.testing.assert_allclose(one, net.apply(variables, view, train=True)[0], **CLOSE)
    assert np.abs(apart[0] - found[0]).max() > 0.1


def test_together_moves_no_rows_between_devices(net, variables):
    mesh = sharding.make_mesh(jax.devices()[:4])
    view = jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=sharding.batch_sharding(mesh))

    def outputs(variables, one, two):
        return Forward({"head": net}, {"head": variables["params"]}, {"head": variables["batch_stats"]}, mesh=mesh)(
            "head", [one, two], together=True
        )

    text = jax.jit(outputs).lower(variables, view, view).compile().as_text()
    assert set(re.findall(r" (all-\w+|collective-permute|reduce-scatter)\(", text)) == {"all-reduce"}


def test_groups_share_no_statistics(net, variables):
    """The running ones are the mean over the groups."""
    run = forward(net, variables)
    (found,) = run("head", list(VIEWS[:1]), bn_groups=4)
    outputs, stats = zip(*(net.apply(variables, rows, train=True) for rows in np.split(VIEWS[0], 4)), strict=True)
    np.testing.assert_allclose(found, jnp.concatenate(outputs), **CLOSE)
    mean = jax.tree.map(lambda *each: np.mean(each, axis=0), *stats)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), run.batch_stats["head"], mean)


def test_borrowed_weights_leave_no_statistics_and_have_no_gradient(net, variables):
    run = forward(net, variables)
    borrowed = jax.tree.map(lambda leaf: 2 * leaf, variables["params"])
    gradient = jax.grad(lambda weights: run("head", [VIEWS[0]], weights=weights)[0].sum())(borrowed)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert run.batch_stats["head"] is variables["batch_stats"]
