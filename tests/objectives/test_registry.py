"""Methods by name: two losses by hand, and their keys in a config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax import objectives
from bt_jax.config import keys as config_keys
from bt_jax.messages import UserError
from bt_jax.objectives import registry
from bt_jax.objectives.barlow_twins import BarlowTwins
from bt_jax.objectives.moco import MoCo
from bt_jax.objectives.vicreg import VICReg


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
    with pytest.raises(UserError, match="name='barlow' is unknown. Did you mean barlow_twins. Choose from "):
        registry.build(config.objective)
    config.objective.name = "vicreg"
    with pytest.raises(UserError, match="has form, lambd, two_passes, which vicreg does not use"):
        registry.build(config.objective)


@pytest.mark.parametrize(
    "name, key, value, message",
    [
        ("align_uniform", "t", 0.0, "objective.t=0.0 must be positive"),
        ("byol", "momentum", 1.5, "objective.momentum=1.5 is not between 0 and 1.*from 0 to 1"),
        ("byol", "predictor", 0, "objective.predictor=0 must be positive"),
        ("barlow_twins", "lambd", -1.0, "objective.lambd=-1.0 must not be negative. Set --config.objective.lambd to 0"),
        ("vicreg", "variance", float("inf"), "objective.variance=inf is not finite"),
        ("vicreg", "covariance", float("nan"), "objective.covariance=nan is not finite"),
        ("direct_pred", "rho", -0.1, "objective.rho=-0.1 is not between 0 and 1"),
        ("direct_pred", "rule", "exact", "objective.rule='exact' is unknown"),
        ("drlim", "margin", -1.0, "objective.margin=-1.0 must be positive"),
        ("moco", "temperature", float("nan"), "objective.temperature=nan must be positive"),
        ("simclr", "temperature", 0.0, "objective.temperature=0.0 must be positive.*Set --config.objective"),
        ("simsiam", "predictor", -1, "objective.predictor=-1 must be positive"),
        (
            "simclr",
            "predictor",
            512,
            "has predictor, which simclr does not use. Use only name, temperature, sum_of_views",
        ),
        ("infonce", "temperature", 0.1, "has temperature, which infonce does not use. Use only name. Set"),
    ],
)
def test_impossible_options(name, key, value, message):
    with pytest.raises(UserError, match=message) as error:
        registry.build({"name": name, **registry.keys(name), key: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["align_uniform", "moco", "vicreg"])
def test_a_batch_of_one_image(name):
    with pytest.raises(UserError, match="batch_size=1 leaves no other image to compare. Set --config.batch_size=2"):
        registry.build({"name": name, **registry.keys(name)}).check_batch(1)


def test_a_recipe_for_another_method():
    """Its keys, those that the recipe sets, and the projector of its official code; optimizer and views stay."""
    config, plain = config_keys.pretrain(), config_keys.pretrain()
    config.optim.grad_scale = 1 / 32
    objectives.select(config, "moco", {"moco": {"queue": 4096}, "byol": {"momentum": 0.5}})
    assert config.objective.to_dict() == {"name": "moco", **registry.keys("moco"), "queue": 4096}
    assert (config.model.projector, config.model.projector_bias) == ((2048, 128), True)
    assert config.optim == plain.optim and config.views == plain.views
    assert registry.build(config.objective) == MoCo(queue=4096)
    objectives.select(plain, "barlow_twins")
    assert plain.objective == config_keys.pretrain().objective
    with pytest.raises(UserError, match="method='bjol' is unknown. Did you mean byol. Choose from byol,"):
        objectives.select(plain, "bjol")
