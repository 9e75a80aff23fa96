"""The 3x3 max-pool of stride 2 after the stem of an ImageNet ResNet, with its own gradient on a CPU.

On a CPU, XLA finds the largest pixel of each window one window at a time, on one core. Here it is a comparison of nine
strided views of the map, which all cores share: value and gradient of (8, 112, 112, 64) take 31 ms of processor time
instead of 181 (benchmarks/results/step_cpu.md). The form is chosen by the platform that is compiled for; programs for
TPUs and GPUs have the plain pool.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Maps (n, height, width, channels), float, to (n, ceil(height / 2), ceil(width / 2), channels) of its dtype.

    The padding is one pixel of -inf on all sides, as in torch. If pixels of a window are equal, the first in the order
    of rows and columns gets the gradient.
    """
    return lax.platform_dependent(x, cpu=_on_cpu, default=plain)


def plain(x: jax.Array) -> jax.Array:
    """The pool as one operation."""
    padding = ((1, 1), (1, 1))
    # Flax documents such pairs, but its types are those of the default, a string.
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=padding)  # pyright: ignore[reportArgumentType]


def _forward(x):
    return max_pool(x), x


def _backward(x, dy):
    def default(x, dy):
        return jax.vjp(plain, x)[1](dy)[0]

    return (lax.platform_dependent(x, dy, cpu=_gradient_on_cpu, default=default),)


max_pool.defvjp(_forward, _backward)


def _taps(x):
    """The nine pixels of each window, in the order of rows and columns: arrays of the shape of the output."""
    rows, columns = (-(-side // 2) for side in x.shape[1:3])
    padding = ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0))
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), padding)
    return [
        x[:, row : row + 2 * rows - 1 : 2, column : column + 2 * columns - 1 : 2]
        for row in range(3)
        for column in range(3)
    ]


def _on_cpu(x):
    return functools.reduce(jnp.maximum, _taps(x))


def _gradient_on_cpu(x, dy):
    """The gradient for x, one phase for each pair of even or odd rows with even or odd columns.

    Window p reads the rows 2 p - 1, 2 p and 2 p + 1, with the taps 0, 1 and 2. Therefore an even row 2 p is tap 1 of
    window p, and an odd row 2 p + 1 is tap 2 of window p and tap 0 of window p + 1. The same is so for columns.
    """
    largest, *others = _taps(x)
    winner = jnp.zeros(largest.shape, jnp.int32)  # the tap with the largest pixel
    for tap, pixels in enumerate(others, start=1):
        winner = jnp.where(pixels > largest, tap, winner)
        largest = jnp.maximum(largest, pixels)
    (n, height, width, channels), (rows, columns) = x.shape, dy.shape[1:3]
    behind = ((0, 0), (0, 1), (0, 1), (0, 0))  # a row and a column of windows without gradient
    dy, winner = jnp.pad(dy, behind), jnp.pad(winner.astype(jnp.int8), behind)
    of_windows = (((0, 1),), ((0, 2), (1, 0)))  # for even and odd: (window - p, tap)

    def phase(row, column):
        total = jnp.zeros((n, rows, columns, channels), dy.dtype)
        for down, tap_row in of_windows[row]:
            for right, tap_column in of_windows[column]:
                windows = (slice(None), slice(down, down + rows), slice(right, right + columns))
                total += jnp.where(winner[windows] == 3 * tap_row + tap_column, dy[windows], 0)
        return total

    phases = [[phase(row, column) for column in (0, 1)] for row in (0, 1)]
    dx = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)  # (n, rows, 2, columns, 2, channels)
    return dx.reshape(n, 2 * rows, 2 * columns, channels)[:, :height, :width]
