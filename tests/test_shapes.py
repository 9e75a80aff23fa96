"""The tests check annotated shapes; without jaxtyping, annotations are plain array types."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from bt_jax import augment, shapes
from bt_jax.augment import recipes
from bt_jax.evals import knn
from bt_jax.objectives import barlow_twins, functions


@pytest.mark.parametrize(
    "call",
    [
        lambda: barlow_twins.barlow_twins(jnp.zeros((4, 3)), jnp.zeros((4, 2))),
        lambda: barlow_twins.standardise(jnp.zeros((4, 3, 2))),
        lambda: functions.top1(jnp.zeros((4, 3)), jnp.zeros(5, int)),
        lambda: functions.top1(jnp.zeros((4, 3)), jnp.zeros(4)),  # labels that are no integers
        lambda: augment.two_views(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), recipes.cifar(8)),  # not uint8
        lambda: knn.top1(np.zeros((4, 3)), np.zeros(4, int), np.zeros((2, 5)), np.zeros(2, int), num_classes=2),
    ],
)
def test_a_wrong_shape_or_dtype_raises(call):
    with pytest.raises(TypeCheckError):
        call()


def test_without_jaxtyping_an_annotation_is_its_array_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxtyping", None)  # an import then raises ImportError
    spec = importlib.util.spec_from_file_location("bare_shapes", shapes.__file__)
    bare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bare)
    assert bare.Float[jax.Array, "n d"] is jax.Array and bare.Whole == int | jax.Array | np.ndarray
