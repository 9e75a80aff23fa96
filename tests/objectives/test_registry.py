"""Every method: its loss and gradients against the numbers of official codes, and its keys in a config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bt_jax.objectives
from bt_jax.config import keys as config_keys
from bt_jax.messages import UserError
from bt_jax.objectives import registry
from bt_jax.objectives.barlow_twins import BarlowTwins
from bt_jax.objectives.vicreg import VICReg

SECTIONS = {"barlow_twins": "barlow"}  # sections of the fixtures with another name than the method


@pytest.fixture(scope="module")
def numbers(fixtures):
    """tests/fixtures/objectives.npz: float64, `SECTION/NAME`; `loss.d_z1` is the gradient of `loss` by `z1`."""
    with np.load(fixtures / "objectives.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", [name for name in bt_jax.objectives.NAMES if name != "supervised"])
def test_loss_and_gradients_equal_the_official_codes(numbers, name):
    section = SECTIONS.get(name, name)
    gradients = {key.split(".d_")[1]: value for key, value in numbers.items() if key.startswith(f"{section}/loss.d_")}
    with jax.enable_x64(True):
        inputs = {key: jnp.asarray(numbers[f"{section}/{key}"]) for key in gradients}
        assert inputs and all(each.dtype == jnp.float64 for each in inputs.values())
        function = jax.jit(jax.value_and_grad(lambda inputs: bt_jax.objectives.evaluate_loss(name, inputs)[0]))
        loss, gradient = function(inputs)
        np.testing.assert_allclose(loss, numbers[f"{section}/loss"], rtol=1e-13)
        for key, expected in gradients.items():
            np.testing.assert_allclose(gradient[key], expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_supervised_by_hand():
    """The cross-entropy and its gradient in float64; an image without a label does not count."""
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((6, 5)), np.array([0, 4, -1, 2, 2, 1])
    known = labels >= 0
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -log_p[known, labels[known]].mean()
    expected_gradient = np.where(known[:, None], np.exp(log_p) - np.eye(5)[labels], 0) / known.sum()
    with jax.enable_x64(True):

        def loss(logits):
            return registry.evaluate_loss("supervised", {"logits": logits, "labels": jnp.asarray(labels)})

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits))
        np.testing.assert_allclose(value, expected, rtol=1e-13)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-14)
        assert metrics["top1"] == np.mean(logits.argmax(axis=1)[known] == labels[known])


@pytest.mark.parametrize("n, d", [(6, 9), (9, 6)])
def test_vicreg_by_hand(n, d):
    """The loss uses the smaller of two products; NumPy computes the covariance matrix."""
    rng = np.random.default_rng(0)
    z1, z2 = rng.standard_normal((2, n, d)) * rng.uniform(0.1, 2, d)
    covariances = [np.cov(z.T) for z in (z1, z2)]
    expected = {
        "invariance": ((z1 - z2) ** 2).mean(),
        "variance": np.mean([np.maximum(0, 1 - np.sqrt(np.diag(c) + 1e-4)) for c in covariances]),
        "covariance": sum((c[~np.eye(d, dtype=bool)] ** 2).sum() / d for c in covariances),
    }
    with jax.enable_x64(True):
        loss, terms = registry.evaluate_loss("vicreg", {"z1": jnp.asarray(z1), "z2": jnp.asarray(z2)}, covariance=3.0)
        assert {name: pytest.approx(value, rel=1e-12) for name, value in expected.items()} == terms
        weighted = 25 * expected["invariance"] + 25 * expected["variance"] + 3 * expected["covariance"]
        assert loss == pytest.approx(weighted)


def test_the_method_of_the_config_is_built():
    config = config_keys.pretrain()
    assert registry.build(config.objective) == BarlowTwins(0.0051, "auto", True)
    with config.unlocked():
        config.objective = {"name": "vicreg", **registry.keys("vicreg")}
    config.objective.variance = 9.0
    assert registry.build(config.objective) == VICReg(variance=9.0)


def test_the_default_config_has_every_key():
    """The keys of Barlow Twins are in two places, because configs are read without JAX."""
    assert config_keys.pretrain().objective.to_dict() == {"name": "barlow_twins"} | registry.keys("barlow_twins")


def test_an_unknown_method_and_unknown_keys():
    config = config_keys.pretrain()
    config.objective.name = "barlow"
    with pytest.raises(UserError, match="Choose from barlow_twins, "):
        registry.build(config.objective)
    config.objective.name = "vicreg"
    with pytest.raises(UserError, match="has form, lambd, two_passes, which vicreg does not use"):
        registry.build(config.objective)
