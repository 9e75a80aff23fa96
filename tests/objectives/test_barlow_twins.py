"""The loss and its gradient against the reference, in float64, and properties that other implementations lack."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bt_jax import optim, sharding
from bt_jax.messages import UserError
from bt_jax.objectives import barlow_twins
from bt_jax.train import optimizer
from tests.support import hlo

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
        return barlow_twins.barlow_twins(a, b, lambd=lambd, form=form)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(z1, z2)
    # Both sides are float64. Sums of up to 65,536 terms in another order differ by about 1e-14.
    np.testing.assert_allclose(value, stored[f"{case}/loss"], rtol=1e-13)
    for gradient, name in zip(gradients, ("grad_z1", "grad_z2"), strict=True):
        expected = stored[f"{case}/{name}"]
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("form", FORMS)
def test_identical_views_have_a_unit_diagonal(form, x64):
    z, _ = _random(64, 16)
    _, parts = barlow_twins.barlow_twins(z, z, lambd=0.0051, form=form)
    # The diagonal is var / (var + eps): 1 - 1e-5 at unit variance.
    np.testing.assert_allclose(parts["diag_mean"], 1, atol=2e-5)
    assert parts["on_diag"] < 16 * (3e-5) ** 2


@pytest.mark.parametrize("form", FORMS)
def test_scale_and_shift_of_a_view_have_no_influence(form, x64):
    z1, z2 = _random(64, 16)
    plain = barlow_twins.barlow_twins(z1, z2, lambd=0.0051, form=form)[0]
    # The results differ by eps alone: 1e-5, for a variance of 1 or 9.
    scaled = barlow_twins.barlow_twins(z1, 3 * z2 + 7, lambd=0.0051, form=form)[0]
    np.testing.assert_allclose(scaled, plain, rtol=1e-4)
    assert abs(scaled - plain) > 0  # without eps, both would be equal


def test_each_view_has_its_own_statistics(x64):
    """Joint statistics, as in two other implementations, depend on a shift between the views."""
    z1, z2 = _random(64, 16)
    plain = barlow_twins.barlow_twins(z1, z2)[0]
    np.testing.assert_allclose(barlow_twins.barlow_twins(z1, z2 + 100)[0], plain, rtol=1e-6)


def test_off_diagonal_floor(x64):
    """The off-diagonal term of independent embeddings is D (D - 1) / (N - 1)."""
    rng = np.random.default_rng(0)
    n, d = 256, 128
    _, parts = barlow_twins.barlow_twins(rng.standard_normal((n, d)), rng.standard_normal((n, d)))
    np.testing.assert_allclose(parts["off_diag"], d * (d - 1) / (n - 1), rtol=0.05)  # sd of the mean is about 1 %


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", (1, 2, 4, 8))
def test_any_number_of_devices(form, count, x64):
    """Every device has other rows. The mean of local statistics would differ by some percent."""
    z1, z2 = _random(64, 96)

    def grad(mesh):
        return jax.value_and_grad(lambda a, b: barlow_twins.barlow_twins(a, b, form=form, mesh=mesh)[0], (0, 1))

    expected = jax.jit(grad(None))(z1, z2)
    mesh = sharding.make_mesh(jax.devices()[:count])
    split = jax.device_put((z1, z2), sharding.batch_sharding(mesh))
    for result in (jax.jit(grad(mesh))(*split), jax.jit(grad(None))(*split)):
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * np.abs(np.asarray(b)).max())
    loss = jax.jit(lambda a, b: barlow_twins.barlow_twins(a, b, form=form)[0])
    local = np.mean([loss(*pair) for pair in zip(np.split(z1, 4), np.split(z2, 4), strict=True)])
    assert abs(local / expected[0] - 1) > 0.02  # other implementations compute this number on four devices


def _compiled(form, n, d, *, mesh):
    """Sizes, in elements, of all arrays in the compiled loss and gradient on eight devices, with a split batch."""
    grad = jax.value_and_grad(
        lambda a, b: barlow_twins.barlow_twins(a, b, form=form, mesh=on if mesh else None)[0], (0, 1)
    )
    on = sharding.make_mesh(jax.devices()[:8])
    rows = sharding.batch_sharding(on)
    z = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=rows)
    return hlo.buffer_elements(jax.jit(grad, out_shardings=(None, (rows, rows))).lower(z, z).compile().as_text())


def test_no_device_has_a_d_by_d_matrix():
    n, d = 64, 512
    assert max(_compiled("covariance", n, d, mesh=False)) >= d * d  # without a mesh, every device has all of c
    assert max(_compiled("covariance", n, d, mesh=True)) == d * d // 8  # the device's rows of c
    assert max(_compiled("gram", n, d, mesh=True)) <= max(n * n, n * d)


def test_covariance_in_blocks_on_devices(x64, monkeypatch):
    z1, z2 = _random(16, 48)
    mesh = sharding.make_mesh(jax.devices()[:4])

    def grad(mesh):
        return jax.value_and_grad(lambda a, b: barlow_twins.barlow_twins(a, b, form="covariance", mesh=mesh)[0], (0, 1))

    expected = jax.jit(grad(None))(z1, z2)
    monkeypatch.setattr(barlow_twins, "BLOCK", 48 * 5)  # a device has 12 rows, and computes 4 at a time
    program = jax.jit(grad(mesh)).lower(z1, z2).compile()
    for a, b in zip(jax.tree.leaves(program(z1, z2)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * np.abs(np.asarray(b)).max())
    assert 12 * 48 not in hlo.buffer_elements(program.as_text()) and 4 * 48 in hlo.buffer_elements(program.as_text())


def test_covariance_in_blocks(x64, monkeypatch):
    """Blocks of a few rows of c have the same result, and the program has no larger array."""
    z1, z2 = _random(16, 48)

    def grad(a, b):
        return jax.value_and_grad(lambda a, b: barlow_twins.barlow_twins(a, b, form="covariance")[0], (0, 1))(a, b)

    expected = grad(z1, z2)
    assert max(hlo.buffer_elements(jax.jit(grad).lower(z1, z2).compile().as_text())) == 48 * 48
    monkeypatch.setattr(barlow_twins, "BLOCK", 48 * 5)  # 5 rows; the largest smaller divisor of 48 is 4
    for result in (grad(z1, z2), jax.jit(grad)(z1, z2)):
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * np.abs(np.asarray(b)).max())
    assert max(hlo.buffer_elements(jax.jit(lambda a, b: grad(a, b)).lower(z1, z2).compile().as_text())) == 16 * 48


@pytest.mark.parametrize("form", FORMS)
def test_gradient_of_the_parts(form, x64):
    """The gradients of both terms equal those of plain automatic differentiation."""
    z1, z2 = _random(12, 20)

    def plain(a, b, name):
        c = barlow_twins.cross_correlation(a, b)
        on, squares = jnp.square(1 - jnp.diag(c)).sum(), jnp.square(c).sum()
        return on if name == "on_diag" else squares - jnp.square(jnp.diag(c)).sum()

    for name in ("on_diag", "off_diag"):

        def part(a, b, name=name):
            return barlow_twins.barlow_twins(a, b, form=form)[1][name]

        gradients = jax.jit(jax.grad(part, (0, 1)))(z1, z2)
        expected = jax.jit(jax.grad(plain, (0, 1)), static_argnums=2)(z1, z2, name)
        for a, b in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * np.abs(np.asarray(b)).max())


def test_gradient_of_w_reference_gpus(x64):
    """`grad_scale = 1 / W` reproduces the gradient of the reference on W GPUs, here four shards.

    In reference main.py, every GPU r computes c_r from its rows of batch-normalised z. SyncBatchNorm shares the
    statistics. The all-reduce of c is outside of autograd: the loss has the value of the sum, but the gradient of c_r
    alone. The backward pass of SyncBatchNorm adds the gradients by the shared statistics, and DDP averages over GPUs:
        1/W sum_r dL/dc : dc_r/dp = 1/W dL/dc : dc/dp,    the true gradient over W.
    """
    shards, rate = 4, 0.0048
    rng = np.random.default_rng(0)
    h1, h2 = rng.standard_normal((2, 32, 6))
    params = {"kernel": rng.standard_normal((6, 10)), "hidden_bias": rng.standard_normal(10), "last": np.eye(10)}

    def embed(params, h):
        return jnp.tanh(h @ params["kernel"] + params["hidden_bias"]) @ params["last"]

    def reference(params):
        z1, z2 = (barlow_twins.standardise(embed(params, h)) for h in (h1, h2))
        parts = [a.T @ b / 32 for a, b in zip(jnp.split(z1, shards), jnp.split(z2, shards), strict=True)]
        total = 0
        for c_r in parts:
            c = jax.lax.stop_gradient(sum(parts) - c_r) + c_r
            on = jnp.square(jnp.diag(c) - 1).sum()
            total += on + barlow_twins.LAMBD * (jnp.square(c).sum() - jnp.square(jnp.diag(c)).sum())
        return total / shards  # DDP's mean

    def ours(params):
        return barlow_twins.barlow_twins(embed(params, h1), embed(params, h2))[0]

    theirs, true = jax.jit(jax.grad(reference))(params), jax.jit(jax.grad(ours))(params)
    for name in params:
        np.testing.assert_allclose(theirs[name], true[name] / shards, rtol=0, atol=1e-13 * np.abs(true[name]).max())

    def step(gradient, scale):
        tx = optimizer.make_optimizer(optim.lars(0.2, rate, weight_decay=1.5e-6), optax.sgd(0.0), grad_scale=scale)
        tree = {"backbone": params, "projector": {}, "probe": {}}
        updates, _ = jax.jit(lambda grads: tx.update(grads, tx.init(tree), tree))({**tree, "backbone": gradient})
        return updates["backbone"]

    expected, scaled, unscaled = step(theirs, 1.0), step(true, 1 / shards), step(true, 1.0)
    for name in params:
        np.testing.assert_allclose(scaled[name], expected[name], rtol=1e-10)
    np.testing.assert_allclose(unscaled["hidden_bias"], shards * expected["hidden_bias"], rtol=1e-10)
    # For matrices, LARS cancels the factor, except in the weight decay: 2e-5 of this update.
    kernel = expected["kernel"]
    np.testing.assert_allclose(unscaled["kernel"], kernel, rtol=0, atol=1e-4 * np.abs(kernel).max())


def test_bfloat16_embeddings_accumulate_in_float32():
    z1, z2 = (jnp.asarray(z, jnp.bfloat16) for z in _random(512, 64))
    loss, parts = barlow_twins.barlow_twins(z1, z2)
    assert loss.dtype == parts["off_diag"].dtype == jnp.float32
    assert loss == barlow_twins.barlow_twins(z1.astype(jnp.float32), z2.astype(jnp.float32))[0]


def test_form_is_chosen_by_shape(x64):
    """The automatic form has the matrix of the cheaper form: (n, n), or a block of (d, d)."""

    def matrices(n, d):
        z = jnp.zeros((n, d))
        grad = jax.jit(jax.grad(lambda a, b: barlow_twins.barlow_twins(a, b)[0]))
        return set(re.findall(r"tensor<(\d+x\d+)xf64>", grad.lower(z, z).as_text()))

    assert "32x32" in matrices(32, 64) and "64x64" not in matrices(32, 64)
    assert "32x32" in matrices(64, 32) and "64x64" not in matrices(64, 32)
    assert [barlow_twins.choose_form(n, 8192) for n in (256, 2048, 6144, 6145, 16384)] == 3 * ["gram"] + 2 * [
        "covariance"
    ]


def test_wrong_input_raises(unchecked):
    with pytest.raises(UserError, match="one shape"):
        barlow_twins.barlow_twins(jnp.zeros((4, 3)), jnp.zeros((4, 2)))
    with pytest.raises(UserError, match="form='dual' is unknown. Choose from auto, "):
        barlow_twins.barlow_twins(jnp.zeros((4, 3)), jnp.zeros((4, 3)), form="dual")
