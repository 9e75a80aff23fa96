"""The losses by their public names, and what they say about wrong input."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax import losses
from bt_jax.messages import UserError
from bt_jax.objectives import registry

Z = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
MANY = ("align_uniform", "barlow_twins", "drlim", "infonce", "simclr", "vicreg")  # they compare images of a batch


def test_every_method_has_its_loss():
    assert {name: getattr(losses, name) for name in losses.__all__} == {
        name: registry.METHODS[name].function for name in registry.NAMES
    }
    assert all("(n, " in getattr(losses, name).__doc__ for name in losses.__all__)  # shapes


@pytest.mark.parametrize(
    "z1, z2, message",
    [
        (
            np.ones((4, 3), int),
            Z,
            'z1 is int64, but a loss needs floating-point numbers. Convert it: z1.astype("float32")',
        ),
        (Z, Z > 0, "z2 is bool, but a loss needs"),
        (Z, Z.tolist(), "z2 is a list, not an array. Convert it: jnp.asarray(z2)."),
        (Z[0], Z[0], "z1 has the shape (3,), not (n, d). Pass one row"),
        (Z, Z[:, :2], "z1 has the shape (4, 3), but z2 has (4, 2). Pass arrays of one shape."),
    ],
)
def test_wrong_arrays_are_one_line(z1, z2, message, unchecked):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        losses.barlow_twins(z1, z2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", MANY)
def test_a_batch_of_one_row(name):
    inputs = [jnp.ones((1, 3)), jnp.ones((1, 3)), jnp.ones((3, 3))][: 3 if name == "infonce" else 2]
    with pytest.raises(UserError, match="the shape .1, 3., but this loss compares the images of a batch. Pass 2 rows"):
        getattr(losses, name)(*inputs)


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_other_losses_take_one_row(name):
    """They compare the views of one image."""
    assert np.isfinite(jax.jit(getattr(losses, name))(*[Z[:1]] * 4)[0])


@pytest.mark.parametrize(
    "name, inputs, options, message",
    [
        ("byol", ["z1", "z2"], {}, "The loss of byol takes the arrays p1, p2, t1, t2, not z1, z2. Pass all"),
        ("byol", [], {}, "p1, p2, t1, t2, not none. Pass all of them; help(bt_jax.losses.byol) describes them."),
        ("simclr", ["z1", "z2", "queue"], {}, "takes the arrays z1, z2, not z1, z2, queue"),
        ("simclr", ["z1", "z2"], {"lambd": 1.0}, "has no option lambd. Use only temperature, sum_of_views."),
        ("drlim", ["z1", "z2"], {"temperature": 1.0}, "has no option temperature. Use only margin."),
        ("byol", ["p1", "p2", "t1", "t2"], {"momentum": 0.9}, "has no option momentum. It has no options."),
    ],
)
def test_wrong_names(name, inputs, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        registry.evaluate_loss(name, dict.fromkeys(inputs, Z), **options)
