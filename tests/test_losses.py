"""The loss and its gradient against the reference, in float64, and the properties the peers' versions lack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax import losses, sharding

CASES = ("n64_d32", "n32_d128", "n48_d48", "n8_d256")
FORMS = ("covariance", "gram")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def _random(n, d, seed=0):
    rng = np.random.default_rng(seed)
    z1 = rng.standard_normal((n, d))
    return z1, 0.8 * z1 + 0.6 * rng.standard_normal((n, d))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_the_reference(case, form, fixtures, x64):
    stored = np.load(fixtures / "loss.npz")
    z1, z2, lambd = stored[f"{case}/z1"], stored[f"{case}/z2"], float(stored[f"{case}/lambda"])

    def loss(a, b):
        return losses.barlow_twins(a, b, lambd=lambd, form=form)[0]

    value, gradients = jax.value_and_grad(loss, (0, 1))(z1, z2)
    # Both sides are float64; sums of up to 65,536 terms in another order leave about 1e-14.
    np.testing.assert_allclose(value, stored[f"{case}/loss"], rtol=1e-13)
    for gradient, name in zip(gradients, ("grad_z1", "grad_z2"), strict=True):
        wanted = stored[f"{case}/{name}"]
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-13 * np.abs(wanted).max())


@pytest.mark.parametrize("form", FORMS)
def test_identical_views_have_a_unit_diagonal(form, x64):
    z, _ = _random(64, 16)
    _, parts = losses.barlow_twins(z, z, lambd=0.0051, form=form)
    # var / (var + eps) is the diagonal: 1 - 1e-5 at unit variance
    np.testing.assert_allclose(parts["diag_mean"], 1, atol=2e-5)
    assert parts["on_diag"] < 16 * (3e-5) ** 2


@pytest.mark.parametrize("form", FORMS)
def test_a_view_may_be_scaled_and_shifted(form, x64):
    z1, z2 = _random(64, 16)
    plain = losses.barlow_twins(z1, z2, lambd=0.0051, form=form)[0]
    # Exact but for eps: 1e-5 against a variance of 1 or 9
    moved = losses.barlow_twins(z1, 3 * z2 + 7, lambd=0.0051, form=form)[0]
    np.testing.assert_allclose(moved, plain, rtol=1e-4)
    assert abs(moved - plain) > 0  # the tolerance is about eps, so the test would see a missing eps


def test_views_are_normalised_each_by_itself(x64):
    """Joint statistics, which two peers use, see a shift between the views."""
    z1, z2 = _random(64, 16)
    plain = losses.barlow_twins(z1, z2)[0]
    np.testing.assert_allclose(losses.barlow_twins(z1, z2 + 100)[0], plain, rtol=1e-6)


def test_off_diagonal_floor(x64):
    """Independent embeddings leave D (D - 1) / (N - 1) off the diagonal (checked numerically in the paper's notes)."""
    rng = np.random.default_rng(0)
    n, d = 256, 128
    _, parts = losses.barlow_twins(rng.standard_normal((n, d)), rng.standard_normal((n, d)))
    np.testing.assert_allclose(parts["off_diag"], d * (d - 1) / (n - 1), rtol=0.05)  # sd of the mean is about 1 %


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", (1, 2, 4, 8))
def test_any_number_of_devices(form, count, x64):
    """Different rows on every device; local statistics averaged over devices would be off by per cents."""
    z1, z2 = _random(64, 96)
    grad = jax.value_and_grad(lambda a, b: losses.barlow_twins(a, b, form=form)[0], (0, 1))
    wanted = grad(z1, z2)
    mesh = sharding.make_mesh(jax.devices()[:count])
    split = jax.device_put((z1, z2), sharding.batch_sharding(mesh))
    found = jax.jit(grad)(*split)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * np.abs(np.asarray(b)).max())
    local = np.mean(
        [losses.barlow_twins(*pair, form=form)[0] for pair in zip(np.split(z1, 4), np.split(z2, 4), strict=True)]
    )
    assert abs(local / wanted[0] - 1) > 0.02  # what the peers compute on four devices is another number


def test_bfloat16_embeddings_accumulate_in_float32():
    z1, z2 = (jnp.asarray(z, jnp.bfloat16) for z in _random(512, 64))
    loss, parts = losses.barlow_twins(z1, z2)
    assert loss.dtype == parts["off_diag"].dtype == jnp.float32
    wanted = losses.barlow_twins(z1.astype(jnp.float32), z2.astype(jnp.float32))[0]
    assert loss == wanted


def test_form_is_chosen_by_shape():
    def biggest(n, d):
        z = jnp.zeros((n, d))
        jaxpr = jax.make_jaxpr(lambda a, b: losses.barlow_twins(a, b)[0])(z, z)
        return {v.aval.shape for e in jaxpr.eqns for v in e.outvars}

    assert (32, 32) in biggest(32, 64) and (64, 64) not in biggest(32, 64)
    assert (32, 32) in biggest(64, 32) and (64, 64) not in biggest(64, 32)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        losses.barlow_twins(jnp.zeros((4, 3)), jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="form"):
        losses.barlow_twins(jnp.zeros((4, 3)), jnp.zeros((4, 3)), form="dual")
