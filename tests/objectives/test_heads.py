"""The heads of the rivals, layer by layer, as the official codes have them."""

from types import SimpleNamespace

import jax
import pytest

from bt_jax import models
from bt_jax.models.batch_norm import BatchNorm
from bt_jax.objectives import registry

LINEAR, BIASED, NORM = ("kernel",), ("bias", "kernel"), ("bias", "scale")
WITHOUT = {"fc0": LINEAR, "bn0": NORM, "fc1": LINEAR}
SIAM = {"fc0": LINEAR, "bn0": NORM, "fc1": LINEAR, "bn1": NORM, "fc2": LINEAR}
HALF = {"fc0": BIASED, "bn0": NORM, "fc1": LINEAR}
HEADS = {
    "align_uniform": {"projector": SIAM},
    "byol": {"projector": HALF, "predictor": HALF},  # networks.py:41-44
    "direct_pred": {"projector": {"fc0": BIASED, "fc1": BIASED}},  # batch norm without parameters
    "drlim": {"projector": WITHOUT},
    "infonce": {"projector": WITHOUT, "bilinear": {"fc0": LINEAR}},
    "moco": {"projector": {"fc0": BIASED, "fc1": BIASED}},  # no batch norm
    "simclr": {"projector": SIAM | {"bn2": ("scale",)}},  # model_util.py:155-166
    "simsiam": {"projector": SIAM, "predictor": {"fc0": LINEAR, "bn0": NORM, "fc1": BIASED}},  # builder.py:28-42
}
NORMALISED = {"align_uniform": 2, "byol": 1, "direct_pred": 1, "drlim": 1, "infonce": 1, "moco": 0, "simclr": 3}
NORMALISED |= {"simsiam": 3}  # layers of the projector that end in a batch norm


@pytest.mark.parametrize("name", HEADS)
def test_layers_of_the_heads(name):
    method = registry.METHODS[name].objective
    config = {"projector": (16, 8), "projector_bias": False, "dtype": "float32"} | method.model
    heads = method().heads(SimpleNamespace(**config), 32)
    found = {head: jax.eval_shape(net.init, jax.random.key(0)) for head, net in heads.items()}
    layers = {head: {layer: tuple(params) for layer, params in each["params"].items()} for head, each in found.items()}
    assert layers == HEADS[name]
    assert len(found["projector"]["batch_stats"]) == NORMALISED[name]
    widths = method.model["projector"]
    assert heads["projector"].feature_dim == widths[-1]
    for head in layers.keys() - {"projector"}:
        assert heads[head].options["in_dim"] == heads[head].feature_dim == widths[-1]


def test_a_batch_norm_without_parameters_only_normalises():
    x = jax.random.normal(jax.random.key(0), (32, 5)) * 2 + 3
    plain = BatchNorm(5, trained=())(x, train=True)
    assert abs(float(plain.mean())) < 1e-6 and abs(float(plain.std()) - 1) < 1e-4
    scaled = BatchNorm(5, trained=("scale",), scale=3.0)(x, train=True)
    assert abs(float(scaled.mean())) < 1e-5 and abs(float(scaled.std()) - 3) < 1e-3


def test_a_projector_is_rebuilt_from_its_record():
    net = models.build_projector(8, (4, 2), bias=True, last_bias=False, hidden_norm=None, last_norm=())
    same = models.build_projector(**net.options)
    key = jax.random.key(0)
    assert jax.eval_shape(same.init, key) == jax.eval_shape(net.init, key)
