"""The optimizers of a config, compared with hand-written updates: every number of the config has its effect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax.config import keys
from bt_jax.objectives.barlow_twins import BarlowTwins
from bt_jax.tasks import finetune
from bt_jax.train import epochs, optimizer
from tests.support.runs import changed

PARAMS = {
    "backbone": {"kernel": np.float32([[3.0, 4.0]]), "bias": np.float32([1.0])},
    "projector": {"kernel": np.float32([[0.0, 5.0]])},
    "probe": {"kernel": np.float32([[2.0, 0.0]]), "bias": np.float32([1.0])},
}
GRADIENT = jax.tree.map(lambda p: np.full_like(p, 0.5), PARAMS)


def updates(tx, steps, params=PARAMS, gradient=GRADIENT):
    """The updates of the optimizer at some steps for one gradient, {"backbone/kernel": (steps,)}, first elements."""

    params, gradient = (jax.tree.map(jnp.asarray, tree) for tree in (params, gradient))

    def step(state, _):
        update, state = tx.update(gradient, state, params)
        return state, update

    _, found = jax.jit(lambda: jax.lax.scan(step, tx.init(params), length=steps))()
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.array(a).reshape(steps, -1)[:, 0]
        for path, a in leaves
    }


def built(**values):
    config = changed(keys.pretrain(), **{"optim.warmup_epochs": 0.0, "batch_size": 512} | values)
    tx, rates = optimizer.build_optimizer(
        config.optim, config.probe, config.batch_size, epochs.Plan(5, 20), BarlowTwins()
    )
    return tx, {name: float(rate(0)) for name, rate in rates.items()}


def test_the_optimizer_follows_the_config():
    """SGD and LARS by hand at a batch size of 512, with twice the rates of 256 images."""
    values = {"optim.name": "sgd", "optim.lr_weights": 0.3, "optim.lr_biases": 0.02, "optim.weight_decay": 0.1}
    values |= {"optim.momentum": 0.5, "optim.grad_scale": 0.25}
    values |= {"probe.lr": 0.7, "probe.momentum": 0.4, "probe.weight_decay": 0.05}
    values |= {"optim.end_factor": 0.5}
    tx, rates = built(**values)
    assert rates == pytest.approx({"lr_weights": 0.6, "lr_biases": 0.04})
    found = updates(tx, 21)
    kernel, probe = found["backbone/kernel"], found["probe/kernel"]
    gradient = 0.25 * 0.5 + 0.1 * np.array([3.0, 1.0])
    np.testing.assert_allclose([kernel[0], found["backbone/bias"][0]], -gradient * [0.6, 0.04], rtol=1e-6)
    np.testing.assert_allclose(probe[0], -1.4 * (0.5 + 0.05 * 2), rtol=1e-6)
    cosine = 0.5 * (1 + np.cos(np.pi / 20))
    np.testing.assert_allclose(kernel[1] / kernel[0], 1.5 * (0.5 + 0.5 * cosine), rtol=1e-5)
    np.testing.assert_allclose(probe[1] / probe[0], 1.4 * cosine, rtol=1e-5)
    np.testing.assert_allclose(kernel[20], -0.5 * 0.6 * 2 * gradient[0], rtol=1e-4)  # the sum of the momentum is 2
    np.testing.assert_allclose(probe[20], 0, atol=1e-6)

    values = {"optim.trust_coefficient": 0.02, "optim.lr_weights": 0.3, "optim.weight_decay": 0.0, "optim.momentum": 0}
    warm = {"optim.warmup_epochs": 2.0, "optim.start_factor": 0.25}
    ratio = 0.02 * 5 / np.linalg.norm([0.5, 0.5])
    kernel = updates(built(**values | warm)[0], 11)["backbone/kernel"]
    rates = 0.6 * np.array([0.25, 0.325, 1.0])  # at steps 0, 1 and 10, the end of two epochs
    np.testing.assert_allclose(kernel[[0, 1, 10]], -rates * ratio * 0.5, rtol=1e-5)
    kernel = updates(built(**values | {"optim.clip": True, "optim.trust_coefficient": 20.0})[0], 1)["backbone/kernel"]
    np.testing.assert_allclose(kernel, -0.6 * 0.5, rtol=1e-5)  # clipped at 1


def test_rates_by_epoch():
    """An epoch has five steps. The rise of a warm-up goes by the epoch too."""
    values = {"optim.name": "sgd", "optim.lr_weights": 1.0, "optim.weight_decay": 0.0, "optim.momentum": 0.0}
    values |= {"batch_size": 256, "optim.end_factor": 0.0, "optim.by_epoch": True}
    kernel = updates(built(**values)[0], 20)["backbone/kernel"]
    np.testing.assert_allclose(kernel, -0.25 * (1 + np.cos(np.pi * np.repeat(np.arange(4), 5) / 4)), rtol=1e-5)
    kernel = updates(built(**values | {"optim.warmup_epochs": 2.0})[0], 15)["backbone/kernel"]
    np.testing.assert_allclose(kernel, -0.5 * np.repeat([0, 0.5, 1], 5), rtol=1e-6)


@pytest.mark.parametrize(
    "name, bias", [("lars", -0.5), ("larc", -0.02), ("sgd", -0.6), ("adam", -1.0), ("adamw", -1.0)]
)
def test_every_optimizer_of_the_config(name, bias):
    """The first update of the bias 1 with the gradient 0.5, a rate of 1 and a decay of 0.1 in those that have it."""
    values = {"optim.name": name, "optim.lr_biases": 1.0, "optim.weight_decay": 0.1, "batch_size": 256}
    found = updates(built(**values, **{"optim.trust_coefficient": 0.02})[0], 1)
    np.testing.assert_allclose(found["backbone/bias"], bias, rtol=1e-5)  # Adam computes 1 - 0.999 in float32


def test_the_order_of_simclr_in_the_config():
    """In the second step of a rise from a rate of 0, the momentum is still 0 with it, and 0.5 g without."""
    values = {"optim.lr_biases": 1.0, "optim.momentum": 0.5, "optim.warmup_epochs": 2.0, "batch_size": 256}
    found = [
        updates(built(**values, **{"optim.rate_in_momentum": key})[0], 2)["backbone/bias"] for key in (False, True)
    ]
    np.testing.assert_allclose(found, [[0, -0.1 * 0.75], [0, -0.1 * 0.5]], rtol=1e-6)


def test_the_optimizer_of_finetuning_follows_the_config():
    def of(**values):
        config = changed(keys.finetune(), **{f"optim.{name}": value for name, value in values.items()})
        config.total_epochs, config.extend_epochs = 3.0, 1.0
        tx, rates = finetune._optimizer(config.optim, epochs.Plan(5, 20))
        params = {"backbone": {"layer": {"kernel": np.float32([[2.0]])}}, "classifier": {"kernel": np.float32([[3.0]])}}
        found = updates(tx, 6, params, jax.tree.map(np.ones_like, params))
        return np.stack([found["classifier/kernel"], found["backbone/layer/kernel"]], axis=1), rates

    plain = {"lr_classifier": 0.4, "lr_backbone": 0.02, "momentum": 0.0, "weight_decay": 0.1}
    found, rates = of(**plain)
    wanted = np.array([-0.4 * 1.3, -0.02 * 1.2])
    np.testing.assert_allclose(found[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(found[5] / found[0], [0.5 * (1 + np.cos(np.pi / 4))] * 2, rtol=1e-5)  # of four epochs
    assert float(rates["lr_backbone"](0)) == pytest.approx(0.02)
    drops = {"schedule": "drops", "drop_epochs": (0.4,), "drop_factor": 0.25}
    found, _ = of(**plain | {"momentum": 0.5, "nesterov": True} | drops)
    np.testing.assert_allclose(found[[0, 1]], [1.5 * wanted, 1.75 * wanted], rtol=1e-5)
    np.testing.assert_allclose(found[3] / found[1], [0.25 * 1.9375 / 1.75] * 2, rtol=1e-5)
