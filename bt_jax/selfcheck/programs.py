"""The programs of the self-check, and the digest of an output, of which the expected value is stored."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax.objectives import barlow_twins


class Check(NamedTuple):
    """One program.

    Attributes:
      run: run(*inputs) -> one JAX array or several.
      inputs: NumPy arrays in float64 with values that float32 represents exactly.
      reduced: whether accelerators compute it with fewer bits (`comparison.TOLERANCE`).
    """

    name: str
    run: Callable
    inputs: tuple[np.ndarray, ...]
    reduced: bool = False

    def stored_name(self, rows: int) -> str:
        """The name in selfcheck/numbers.json. The program that loses rows has a name for each value of `rows`."""
        return f"{self.name}, {rows} rows" if self.name.startswith("vmap") else self.name


def rows_lost(x, matrix):
    """The pattern with which jaxlib 0.10.2 loses rows."""
    return jax.vmap(lambda row: jnp.square(matrix @ row).sum())(x)


def memory_read(matrix, c):
    """The pattern with which XLA reads uninitialised memory."""
    return ((matrix @ jnp.broadcast_to(c, matrix.shape)) * matrix).sum()


def loss(z1, z2, *, form):
    """The loss of Barlow Twins and its two gradients."""
    return jax.value_and_grad(lambda *z: barlow_twins.barlow_twins(*z, form=form)[0], argnums=(0, 1))(z1, z2)


def batch_norm(x, cotangent):
    """The sum of normalised x (n, h, w, c) times the cotangent, and its gradient by x."""

    def total(x):
        offset = x - x.mean((0, 1, 2))
        return (offset * jax.lax.rsqrt(jnp.square(offset).mean((0, 1, 2)) + barlow_twins.EPS) * cotangent).sum()

    return jax.value_and_grad(total)(x)


def lars(parameter, gradient):
    """A gradient scaled by the trust ratio."""
    return jnp.linalg.norm(parameter) / jnp.linalg.norm(gradient) * gradient


def convolution(x, kernel, cotangent, *, stride):
    """The convolution, and its gradients by x and kernel; NHWC and HWIO."""

    def total(x, kernel):
        padding = [(kernel.shape[0] // 2,) * 2] * 2
        layout = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)
        return (out * cotangent).sum(), out

    (_, out), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(x, kernel)
    return out, *gradients


def similarities(bank, queries):
    """Cosine similarities, as `evals.knn` computes them."""
    bank, queries = (x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (bank, queries))
    return jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)


def checks(rows: int) -> list[Check]:
    """The programs; `rows` is the length at which jaxlib 0.10.2 loses rows: 32,769 in float32, 16,385 in float64."""
    draw = np.random.RandomState(0)  # NumPy guarantees the numbers of RandomState

    def array(*shape):
        return draw.randint(-64, 65, shape) / 64

    column = np.arange(rows, dtype=np.float64)[:, None] / 256
    z1 = array(24, 40)
    z = z1, np.round((z1 + array(24, 40) / 2) * 64) / 64
    image, kernel, pointwise = array(4, 8, 8, 6), array(3, 3, 6, 5), array(1, 1, 6, 5)
    same, halved = array(4, 8, 8, 5), array(4, 4, 4, 5)
    once, twice = (partial(convolution, stride=stride) for stride in (1, 2))
    return [
        Check(
            "vmap of a sum of squares",
            rows_lost,
            (np.concatenate([column, 0 * column, 0 * column], 1), np.eye(3)),
            True,
        ),
        Check("sum((E @ broadcast(c)) * E)", memory_read, (array(64, 64), np.array(0.5))),
        Check("loss and gradients, covariance form", partial(loss, form="covariance"), z),
        Check("loss and gradients, Gram form", partial(loss, form="gram"), z),
        Check("batch norm and its gradient", batch_norm, (array(8, 6, 6, 16), array(8, 6, 6, 16))),
        Check("LARS norms", lars, (array(300, 70), array(300, 70))),
        Check("3x3 convolution, its two gradients", once, (image, kernel, same), reduced=True),
        Check("3x3 convolution, stride 2, its gradients", twice, (image, kernel, halved), reduced=True),
        Check("1x1 convolution, stride 2, its gradients", twice, (image, pointwise, halved), reduced=True),
        Check("kNN similarities", similarities, (array(300, 48), array(20, 48))),
    ]


def digest(array: np.ndarray) -> np.ndarray:
    """At most eight float64 sums of the elements, with random signs and weights between 0.5 and 1.5."""
    flat = np.asarray(array, np.float64).ravel()
    draw = np.random.RandomState(flat.size)
    weights = draw.choice([-1, 1], flat.size) * (0.5 + draw.random_sample(flat.size))
    return np.array([part.sum() for part in np.array_split(flat * weights, min(8, flat.size))])
