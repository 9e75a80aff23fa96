"""Resizing and blur, as two matrix products: one along each axis."""

import functools
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bt_jax.messages import UserError
from bt_jax.shapes import Array, Float, Number, Whole


def _bicubic(distance: jax.Array) -> jax.Array:
    """The kernel of Keys with a = -0.5, as in Pillow; zero at distances of 2 and more."""
    x = jnp.abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


def _bilinear(distance: jax.Array) -> jax.Array:
    return jnp.maximum(1 - jnp.abs(distance), 0.0)


_KERNELS = {"bicubic": _bicubic, "bilinear": _bilinear}


def _resize_matrix(outputs: jax.Array, pixels: int, start: Whole, stop: Whole, scale: Number, method: str) -> jax.Array:
    """Pillow's antialiased resize along one axis, as a float32 matrix (len(outputs), pixels).

    Args:
      outputs: (m,) indices of the output pixels; output pixel 0 begins at `start`.
      pixels: length of the input axis.
      start, stop: the taps use input pixels in [start, stop) alone, because Pillow crops before it resizes.
      scale: input pixels per output pixel. Above 1, the kernel widens with it.
    """
    centre = (outputs.astype(jnp.float32) + 0.5) * scale
    pixel = jnp.arange(pixels)
    distance = ((pixel - start).astype(jnp.float32) + 0.5 - centre[:, None]) / jnp.maximum(scale, 1.0)
    weights = jnp.where((pixel >= start) & (pixel < stop), _KERNELS[method](distance), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def products(
    rows: jax.Array, image: Array, columns: jax.Array, precision: jax.lax.Precision = jax.lax.Precision.HIGH
) -> jax.Array:
    """rows @ image @ columns^T of an image (height, channel, width).

    The precision HIGH is TF32 on a GPU and three bfloat16 passes on a TPU.
    """
    image = jnp.einsum("ih,hcw->icw", rows, image, precision=precision)
    return jnp.einsum("icw,jw->icj", image, columns, precision=precision)


def crop_matrices(
    canvas: Sequence[int],
    top: Whole,
    left: Whole,
    height: Whole,
    width: Whole,
    size: int,
    method: str,
    *,
    limit: tuple[Whole, Whole] | None = None,
    flip: bool | jax.Array = False,
) -> tuple[jax.Array, jax.Array]:
    """The matrices (rows, columns) of one crop. A flip reverses the order of the output columns, at no cost."""
    if limit is not None:
        height, width = jnp.minimum(height, limit[0] - top), jnp.minimum(width, limit[1] - left)
    outputs = jnp.arange(size)
    mirrored = jnp.where(flip, size - 1 - outputs, outputs)
    rows = _resize_matrix(outputs, canvas[0], top, top + height, height / size, method)
    return rows, _resize_matrix(mirrored, canvas[1], left, left + width, width / size, method)


def center_crop_matrices(
    canvas: Sequence[int], resize: int, size: int, height: Whole, width: Whole, method: str = "bilinear"
) -> list[jax.Array]:
    """The matrices of torchvision's Resize(resize), which truncates the long side, and CenterCrop(size), which rounds.

    Raises:
      UserError: `size` is larger than `resize`.
    """
    if resize < size:
        raise UserError(f"A crop of {size} pixels is larger than the resize to {resize}", f"Resize to at least {size}.")
    short = jnp.minimum(height, width)
    matrices = []
    for pixels, length in zip(canvas, (height, width), strict=True):
        resized = resize * length // short
        offset = jnp.round((resized - size) / 2).astype(jnp.int32)  # to even, like Python's round
        matrices.append(_resize_matrix(jnp.arange(size) + offset, pixels, 0, length, length / resized, method))
    return matrices


def resized_crop(
    image: Float[Array, "h w c"],
    top: Whole,
    left: Whole,
    height: Whole,
    width: Whole,
    size: int,
    *,
    method: str = "bicubic",
    limit: tuple[Whole, Whole] | None = None,
) -> Float[jax.Array, "{size} {size} c"]:
    """A box of an image, resized to (size, size) as by Pillow's crop and antialiased resize.

    Args:
      image: float32 (h, w, c) in [0, 1].
      top, left, height, width: the box in pixels; may be traced.
      method: "bicubic" or "bilinear".
      limit: (height, width) of an image at the top left of a larger canvas. The box is cut at these limits.
    """
    rows, columns = crop_matrices(image.shape[:2], top, left, height, width, size, method, limit=limit)
    return swap(jnp.clip(products(rows, swap(image), columns), 0.0, 1.0))


def center_crop_of_resize(
    image: Float[Array, "h w c"], resize: int, size: int, height: Whole | None = None, width: Whole | None = None
) -> Float[jax.Array, "{size} {size} c"]:
    """torchvision's Resize(resize, bilinear, antialiased) and CenterCrop(size): float32 (h, w, c) to (size, size, c).

    `height` and `width` are the size of an image at the top left of a larger canvas; they may be traced.

    Raises:
      UserError: `size` is larger than `resize`.
    """
    h, w = image.shape[:2]
    image_size = (h if height is None else height), (w if width is None else width)
    rows, columns = center_crop_matrices((h, w), resize, size, *image_size)
    return swap(jnp.clip(products(rows, swap(image), columns), 0.0, 1.0))


def horizontal_flip(image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """The mirror image of (h, w, c)."""
    return image[:, ::-1]


def swap(image: Array) -> jax.Array:
    """Swaps (height, width, channel) with (height, channel, width)."""
    return jnp.swapaxes(image, -1, -2)


def _box_radius(sigma: Number) -> jax.Array:
    """The radius of each of the three boxes of Pillow's GaussianBlur (Gwosdek et al., 2011, equations 7, 11 and 14)."""
    variance = sigma * sigma / 3
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole + part


def blur_matrix(sigma: Number, size: int, max_sigma: float) -> jax.Array:
    """The blur along one axis, as a float32 (size, size) matrix; sigma 0 gives the identity.

    Pixels beyond an edge repeat the edge. Pillow repeats it before each of the three box blurs, this function once:
    the outermost pixels differ.
    """
    reach = int((math.sqrt(4 * max_sigma**2 + 1) - 1) / 2) + 1  # of one box; three boxes have 13 taps for max_sigma 2
    radius = _box_radius(sigma)
    box = jnp.clip(radius + 1 - jnp.abs(jnp.arange(-reach, reach + 1, dtype=jnp.float32)), 0.0, 1.0)
    box = box / box.sum()
    taps = box
    for _ in range(2):
        taps = _sum([box[k] * jnp.pad(taps, (k, 2 * reach - k)) for k in range(2 * reach + 1)])
    pixel = jnp.arange(size)
    source = [jnp.clip(pixel + k - 3 * reach, 0, size - 1)[:, None] for k in range(6 * reach + 1)]
    return _sum([jnp.where(pixel == source[k], taps[k], 0.0) for k in range(6 * reach + 1)])


def _sum(terms: Sequence[jax.Array]) -> jax.Array:
    """Adds arrays. The built-in `sum` would start with an int."""
    return functools.reduce(operator.add, terms)


def gaussian_blur(image: Float[Array, "h w c"], sigma: Number, *, max_sigma: float = 2.0) -> Float[jax.Array, "h w c"]:
    """Pillow's GaussianBlur(radius=sigma), which is three box blurs, of an image (h, w, c).

    `max_sigma` sets the number of taps, a constant of the compiled program. A larger `sigma` blurs about as much as
    `max_sigma`.
    """
    rows, columns = (blur_matrix(sigma, length, max_sigma) for length in image.shape[:2])
    return swap(products(rows, swap(image), columns))
