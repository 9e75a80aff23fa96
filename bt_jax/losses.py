"""The Barlow Twins loss, exact, in two forms that give the same number.

    c = standardise(z1)^T standardise(z2) / N            paper section 2.1, equation 2
    loss = sum_i (1 - c_ii)^2 + lambd * sum_i sum_{j != i} c_ij^2      equation 1

The statistics are those of the reference's `BatchNorm1d(affine=False)` (main.py): per view, biased variance, eps inside
the root. The paper's Algorithm 1 has the unbiased deviation, with which c_ii cannot exceed (N - 1) / N.

Under `jax.jit` with the batch split over devices the arrays are global, so the statistics, N and c are too.
"""

from typing import Literal

import jax
import jax.numpy as jnp

EPS = 1e-5  # torch.nn.BatchNorm1d's default, which the reference keeps
LAMBD = 0.0051  # reference main.py; the paper's text rounds it to 5e-3 (section 2.2)

Form = Literal["auto", "covariance", "gram"]


def standardise(z: jax.Array) -> jax.Array:
    """Zero mean and unit biased variance for every feature over the batch.

    Args:
      z: (n, d), float.

    Returns:
      (n, d), float32 or the input's dtype where that is wider.
    """
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    z = z - z.mean(axis=0)
    return z * jax.lax.rsqrt(jnp.square(z).mean(axis=0) + EPS)


def cross_correlation(z1: jax.Array, z2: jax.Array) -> jax.Array:
    """c: (d, d) cross-correlation of two embeddings (n, d), in float32 or wider."""
    return _matmul(standardise(z1).T, standardise(z2)) / z1.shape[0]


def barlow_twins(
    z1: jax.Array, z2: jax.Array, *, lambd: float = LAMBD, form: Form = "auto"
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of two embeddings of the same n images.

    Args:
      z1, z2: (n, d), float32, bfloat16 or float64. Accumulation is in float32 or wider.
      lambd: weight of the off-diagonal term.
      form: "covariance" builds c, (d, d). "gram" builds two (n, n) matrices instead, from
        sum_ij c_ij^2 = <Z1 Z1^T, Z2 Z2^T> / n^2; the diagonal comes from column products. "auto" takes the smaller.

    Returns:
      The loss, and its parts: "on_diag" = sum (1 - c_ii)^2, "off_diag" = sum of c_ij^2 off the diagonal, not yet
      multiplied by lambd, and "diag_mean" = mean c_ii.

    Raises:
      ValueError: the shapes differ or are not (n, d), or the form is unknown.
    """
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"z1 and z2 must be two (n, d) arrays of one shape, not {z1.shape} and {z2.shape}")
    n, d = z1.shape
    if form == "auto":
        form = "gram" if n < d else "covariance"
    if form not in ("covariance", "gram"):
        raise ValueError(f"form must be 'auto', 'covariance' or 'gram', not {form!r}")
    z1, z2 = standardise(z1), standardise(z2)
    diag = (z1 * z2).sum(axis=0) / n
    if form == "covariance":
        squares = jnp.square(_matmul(z1.T, z2)).sum() / n**2
    else:
        squares = (_matmul(z1, z1.T) * _matmul(z2, z2.T)).sum() / n**2
    on_diag = jnp.square(1 - diag).sum()
    off_diag = squares - jnp.square(diag).sum()
    return on_diag + lambd * off_diag, {"on_diag": on_diag, "off_diag": off_diag, "diag_mean": diag.mean()}


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    # The default precision on a TPU is bfloat16 and on a GPU TF32; c needs float32 (jax#1856).
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
