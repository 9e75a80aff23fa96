"""Two views of every image, made on the device inside the training step.

The image operations equal Pillow's and torchvision's to about one grey level: they work in floating point and clip
where Pillow clips, but do not round to grey levels in between. Nothing branches on a sample's draws, because `cond`
under `vmap` would compute both sides: an operation that is not drawn runs with parameters that make it the identity,
and one that a recipe never draws is not compiled at all. The recipes are in `recipes`.

Inside, an image is held as (height, channel, width). In that order both halves of a resize and of a blur are plain
matrix products, without a transpose, and the channels are planes whose minor axis is long.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bt_jax.messages import UserError
from bt_jax.recipes import Recipe, View
from bt_jax.shapes import Array, Float, Int, Key, Number, UInt8, Whole

Planes = tuple[jax.Array, ...]  # red, green and blue, each (height, width)


# ------------------------------------------------------------------------------------------- resizing: two products


def _bicubic(distance: jax.Array) -> jax.Array:
    """Keys's kernel with a = -0.5, as in Pillow; zero from distance 2 on."""
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
      outputs: (m,) indices of the pixels wanted; output pixel 0 begins at `start`.
      pixels: length of the input axis.
      start, stop: taps are confined to input pixels in [start, stop), since Pillow crops before it resizes.
      scale: input pixels per output pixel. The kernel widens with it when it shrinks the image.
    """
    centre = (outputs.astype(jnp.float32) + 0.5) * scale
    pixel = jnp.arange(pixels)
    distance = ((pixel - start).astype(jnp.float32) + 0.5 - centre[:, None]) / jnp.maximum(scale, 1.0)
    weights = jnp.where((pixel >= start) & (pixel < stop), _KERNELS[method](distance), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _products(
    rows: jax.Array, image: Array, columns: jax.Array, precision: jax.lax.Precision = jax.lax.Precision.HIGH
) -> jax.Array:
    """rows @ image @ columns^T, image (height, channel, width). HIGH: TF32 on a GPU, three bfloat16 passes on TPU."""
    image = jnp.einsum("ih,hcw->icw", rows, image, precision=precision)
    return jnp.einsum("icw,jw->icj", image, columns, precision=precision)


def _crop_matrices(
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
    """Matrices (rows, columns) of one crop. A flip reverses the order of the columns wanted, at no cost."""
    if limit is not None:
        height, width = jnp.minimum(height, limit[0] - top), jnp.minimum(width, limit[1] - left)
    wanted = jnp.arange(size)
    mirrored = jnp.where(flip, size - 1 - wanted, wanted)
    rows = _resize_matrix(wanted, canvas[0], top, top + height, height / size, method)
    return rows, _resize_matrix(mirrored, canvas[1], left, left + width, width / size, method)


def _center_crop_matrices(
    canvas: Sequence[int], resize: int, size: int, height: Whole, width: Whole, method: str = "bilinear"
) -> list[jax.Array]:
    """Matrices of torchvision's Resize(resize), which truncates the long side, and CenterCrop(size), which rounds."""
    if resize < size:
        raise UserError(f"cannot cut {size} pixels out of an image resized to {resize}", f"Resize to at least {size}")
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
    """Box of an image resized to (size, size), equal to Pillow's crop and antialiased resize.

    Args:
      image: float32 (h, w, c) in [0, 1].
      top, left, height, width: the box in pixels; may be traced.
      method: "bicubic" or "bilinear".
      limit: true (height, width) of an image that lies at the top left of a larger canvas; a box that leaves it is cut.
    """
    rows, columns = _crop_matrices(image.shape[:2], top, left, height, width, size, method, limit=limit)
    return _swap(jnp.clip(_products(rows, _swap(image), columns), 0.0, 1.0))


def center_crop_of_resize(
    image: Float[Array, "h w c"], resize: int, size: int, height: Whole | None = None, width: Whole | None = None
) -> Float[jax.Array, "{size} {size} c"]:
    """torchvision's Resize(resize, bilinear, antialiased) and CenterCrop(size): float32 (h, w, c) to (size, size, c).

    `height` and `width` are the true size of an image at the top left of a larger canvas; they may be traced.
    """
    h, w = image.shape[:2]
    true = (h if height is None else height), (w if width is None else width)
    rows, columns = _center_crop_matrices((h, w), resize, size, *true)
    return _swap(jnp.clip(_products(rows, _swap(image), columns), 0.0, 1.0))


def horizontal_flip(image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Mirror image of (h, w, c)."""
    return image[:, ::-1]


def _swap(image: Array) -> jax.Array:
    """(height, width, channel) to (height, channel, width) and back."""
    return jnp.swapaxes(image, -1, -2)


# ----------------------------------------------------------------------------------- colour: on a triple of planes


def _luma(rgb: Planes) -> jax.Array:
    """ITU-R 601-2 luma, Pillow's "L"."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def _blend(rgb: Planes, other: float | jax.Array, factor: Number) -> Planes:
    """factor * rgb + (1 - factor) * other, clipped. A factor of 1 is exactly the identity."""
    rest = (1 - factor) * other
    return tuple(jnp.clip(factor * plane + rest, 0.0, 1.0) for plane in rgb)


def _contrast(rgb: Planes, factor: Number) -> Planes:
    # Pillow rounds the mean to a grey level. That moves a pixel by at most 0.2 levels at a factor of 0.6, but would
    # turn the last bit of a sum, which may depend on the number of devices, into such a step: so it is left out.
    return _blend(rgb, jnp.mean(_luma(rgb)), factor)


def _hue(rgb: Planes, delta: Number) -> Planes:
    """Turns the hue by up to half a turn at constant HSV saturation and value.

    A channel lies below the value by chroma * clip(2 - d, 0, 1), where d is the distance of the hue, in sixths of a
    turn around the circle, from the channel's complement. Everything here is in units of the chroma, which saves the
    divisions and makes grey no special case.
    """
    r, g, b = rgb
    value = jnp.maximum(jnp.maximum(r, g), b)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)
    within = jnp.where(value == r, g - b, jnp.where(value == g, b - r, r - g))
    sector = jnp.where(value == r, 0.0, jnp.where(value == g, 2.0, 4.0))
    hue = within + (sector + 6 * delta) * chroma  # between -4 and 8 chromas

    def channel(complement: float) -> jax.Array:
        distance = jnp.abs(hue - complement * chroma)
        distance = jnp.minimum(distance, jnp.abs(6 * chroma - distance))
        return value - jnp.clip(2 * chroma - distance, 0.0, chroma)

    return channel(3.0), channel(5.0), channel(1.0)


def _planes(image: Array) -> Planes:
    return tuple(jnp.asarray(image[..., channel]) for channel in range(3))


def adjust_brightness(image: Float[Array, "h w 3"], factor: Number) -> Float[jax.Array, "h w 3"]:
    """Blend with black, (h, w, 3): factor 0 is black, 1 the image."""
    return jnp.stack(_blend(_planes(image), 0.0, factor), axis=-1)


def adjust_contrast(image: Float[Array, "h w 3"], factor: Number) -> Float[jax.Array, "h w 3"]:
    """Blend with the mean luma of the image, (h, w, 3)."""
    return jnp.stack(_contrast(_planes(image), factor), axis=-1)


def adjust_saturation(image: Float[Array, "h w 3"], factor: Number) -> Float[jax.Array, "h w 3"]:
    """Blend with the luma of each pixel, (h, w, 3): factor 0 is grey, 1 the image."""
    return jnp.stack(_blend(_planes(image), _luma(_planes(image)), factor), axis=-1)


def adjust_hue(image: Float[Array, "h w 3"], delta: Number) -> Float[jax.Array, "h w 3"]:
    """Turn the hue of (h, w, 3) by `delta` turns in [-0.5, 0.5], as in HSV."""
    return jnp.stack(_hue(_planes(image), delta), axis=-1)


def to_grayscale(image: Float[Array, "h w 3"]) -> Float[jax.Array, "h w 3"]:
    """Luma in all three channels, (h, w, 3)."""
    return jnp.stack([_luma(_planes(image))] * 3, axis=-1)


def solarize(image: Float[Array, "*shape"], threshold: Number = 128 / 255) -> Float[jax.Array, "*shape"]:
    """Invert values at and above the threshold, as on grey levels: a value counts as the level that it rounds to."""
    return jnp.where(image >= threshold - 0.5 / 255, 1 - image, image)


# ------------------------------------------------------------------------------------------------ blur: two products


def _box_radius(sigma: Number) -> jax.Array:
    """Radius of the box that thrice is Pillow's GaussianBlur (Gwosdek et al., 2011, equations 7, 11 and 14)."""
    variance = sigma * sigma / 3
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole + part


def _blur_matrix(sigma: Number, size: int, max_sigma: float) -> jax.Array:
    """Blur along one axis as a float32 (size, size) matrix; sigma 0 gives the identity.

    Pixels beyond the edge repeat it, here once, in Pillow before each of the three boxes: the outermost pixels differ.
    """
    reach = int((math.sqrt(4 * max_sigma**2 + 1) - 1) / 2) + 1  # of one box; taps in all: 13 for a sigma up to 2
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
    """From the first on: `sum` would begin with an int."""
    return functools.reduce(operator.add, terms)


def gaussian_blur(image: Float[Array, "h w c"], sigma: Number, *, max_sigma: float = 2.0) -> Float[jax.Array, "h w c"]:
    """Pillow's GaussianBlur(radius=sigma), itself three box blurs, of a (h, w, c) image.

    The number of taps is compiled in and follows from `max_sigma`: a larger `sigma` blurs about as much as `max_sigma`.
    """
    rows, columns = (_blur_matrix(sigma, length, max_sigma) for length in image.shape[:2])
    return _swap(_products(rows, _swap(image), columns))


# ------------------------------------------------------------------------------------------------------------- views


class Draw(NamedTuple):
    """The parameters of one view of one image; whatever was not drawn has the value that changes nothing."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array
    flip: jax.Array
    brightness: jax.Array
    contrast: jax.Array
    saturation: jax.Array
    hue: jax.Array
    order: jax.Array  # (4,): moments in [0, 1) at which brightness, contrast, saturation and hue are applied
    grayscale: jax.Array
    sigma: jax.Array
    solarize: jax.Array


def draw(key: Key[jax.Array, ""], view: View, height: Whole, width: Whole) -> Draw:
    """Parameters of one view of a (height, width) image, which may be traced, with torchvision's distributions."""
    u = jax.random.uniform(key, (36,))  # one call, since a hash costs the same for one number as for many
    jitter = u[23] < view.jitter

    def factor(strength: float, u: jax.Array) -> jax.Array:
        low = max(0.0, 1 - strength)
        return jnp.where(jitter, low + u * (1 + strength - low), 1.0)

    sigma = view.blur_sigma[0] + u[34] * (view.blur_sigma[1] - view.blur_sigma[0])
    return Draw(
        *_draw_crop(u[:10], u[10:20], u[20], u[21], view, height, width),
        flip=u[22] < view.flip,
        brightness=factor(view.brightness, u[24]),
        contrast=factor(view.contrast, u[25]),
        saturation=factor(view.saturation, u[26]),
        hue=jnp.where(jitter, view.hue * (2 * u[27] - 1), 0.0),
        order=u[28:32],
        grayscale=u[32] < view.grayscale,
        sigma=jnp.where(u[33] < view.blur, sigma, 0.0),
        solarize=u[35] < view.solarize,
    )


def _draw_crop(
    u_area: jax.Array,
    u_ratio: jax.Array,
    u_top: jax.Array,
    u_left: jax.Array,
    view: View,
    height: Whole,
    width: Whole,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """torchvision's RandomResizedCrop: the first of ten boxes that fits, else the largest central one in ratio."""
    low, high = view.crop_ratio
    area = _real(height * width) * (view.crop_scale[0] + u_area * (view.crop_scale[1] - view.crop_scale[0]))
    ratio = jnp.exp(math.log(low) + u_ratio * (math.log(high) - math.log(low)))
    widths = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
    heights = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first, found = jnp.argmax(fits), jnp.any(fits)

    most_wide = jnp.minimum(width, jnp.round(_real(height) * high).astype(jnp.int32))
    most_high = jnp.minimum(height, jnp.round(_real(width) / low).astype(jnp.int32))
    box_height = jnp.where(found, heights[first], most_high)
    box_width = jnp.where(found, widths[first], most_wide)
    spare_height, spare_width = height - box_height, width - box_width
    top = jnp.where(
        found, jnp.floor(u_top * (spare_height + 1).astype(jnp.float32)).astype(jnp.int32), spare_height // 2
    )
    left = jnp.where(
        found, jnp.floor(u_left * (spare_width + 1).astype(jnp.float32)).astype(jnp.int32), spare_width // 2
    )
    return top, left, box_height, box_width


def _real(pixels: Whole) -> int | jax.Array:
    """The same as float32 where it is traced: strict promotion of dtypes allows no product of int32 and float."""
    return pixels if isinstance(pixels, int) else jnp.asarray(pixels, jnp.float32)


def _jitter(rgb: Planes, drawn: Draw, view: View) -> Planes:
    """Brightness, contrast, saturation and hue in the order drawn: four places, each one blend and one hue.

    Brightness, contrast and saturation are the same blend, with black, the mean grey or the grey image, so a place
    needs one of them; what is not drawn for it has a factor of 1 or a turn of 0. The places are a loop, not a chain:
    every channel of a hue or a saturation reads all three, and a chain of them that is fused into one expression may be
    computed over and over (10 s instead of 1 ms for 16 images of 16 pixels on XLA's CPU backend of JAX 0.10).
    """
    factors = jnp.stack([drawn.brightness, drawn.contrast, drawn.saturation, jnp.ones_like(drawn.hue)])

    def place(rgb: Planes, turn: jax.Array) -> tuple[Planes, None]:
        luma = _luma(rgb)
        other = jnp.where(turn == 0, 0.0, jnp.where(turn == 1, luma.mean(), luma))
        rgb = _blend(rgb, other, factors[turn])
        if view.hue > 0:
            rgb = _hue(rgb, jnp.where(turn == 3, drawn.hue, 0.0))
        return tuple(rgb), None

    order = jnp.argsort(jnp.stack(drawn.order))
    rgb, _ = jax.lax.scan(place, tuple(rgb), order)
    return rgb


def _one_view(key: jax.Array, image: jax.Array, size: Array, view: View, recipe: Recipe, dtype: DTypeLike) -> jax.Array:
    """One view (size, size, c) of a uint8 (height, channel, width) image whose true (height, width) is `size`."""
    drawn = draw(key, view, size[0], size[1])
    canvas, channels = (image.shape[0], image.shape[2]), image.shape[1]
    rows, columns = _crop_matrices(canvas, *drawn[:4], recipe.size, view.interpolation, flip=drawn.flip)

    def product(*operands: jax.Array) -> jax.Array:
        # DEFAULT is one bfloat16 pass on TPUs, whose eight bits hold the grey levels and round as coarsely as Pillow.
        return _products(*(x.astype(dtype) for x in operands), precision=jax.lax.Precision.DEFAULT).astype(jnp.float32)

    image = jnp.clip(product(rows, image, columns) / 255, 0.0, 1.0)
    if channels == 3 and (view.jitter > 0 or view.grayscale > 0):
        rgb = tuple(image[:, channel] for channel in range(3))
        if view.jitter > 0:
            rgb = _jitter(rgb, drawn, view)
        if view.grayscale > 0:
            rgb = _blend(rgb, _luma(rgb), jnp.where(drawn.grayscale, 0.0, 1.0))
        image = jnp.stack(rgb, axis=1)
    if view.blur > 0:
        blur = _blur_matrix(drawn.sigma, recipe.size, view.blur_sigma[1])
        image = product(blur, image, blur)
    if view.solarize > 0:
        image = solarize(image, jnp.where(drawn.solarize, view.solarize_threshold, 2.0))
    return normalise(_swap(image), recipe).astype(dtype)


def two_views(
    key: Key[jax.Array, ""],
    images: UInt8[Array, "n h w c"],
    recipe: Recipe,
    *,
    ids: Int[Array, " n"] | None = None,
    sizes: Int[Array, "n 2"] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[jax.Array, "n {recipe.size} {recipe.size} c"], Float[jax.Array, "n {recipe.size} {recipe.size} c"]]:
    """Two independently drawn views of every image.

    Args:
      key: the step's key. A sample's pixels depend on (key, id) alone, not on its place in the batch or its device.
      images: uint8 (n, h, w, c).
      ids: int (n,), by default 0..n-1.
      sizes: int32 (n, 2), the true (height, width) of images that lie at the top left of a larger canvas.
      dtype: of the views and of the operands of the matrix products; colours are always computed in float32.

    Returns:
      view1, view2: (n, size, size, c), normalised.
    """
    n, h, w, _ = images.shape
    _check_channels(images, recipe)
    ids = jnp.arange(n) if ids is None else ids
    sizes = jnp.broadcast_to(jnp.array([h, w], jnp.int32), (n, 2)) if sizes is None else sizes

    def views(sample_id: Array, image: Array, size: Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(jax.random.fold_in(key, sample_id))
        swapped = _swap(image)
        one = _one_view(keys[0], swapped, size, recipe.view1, recipe, dtype)
        return one, _one_view(keys[1], swapped, size, recipe.view2, recipe, dtype)

    return jax.vmap(views)(ids, images, sizes)


def evaluation_view(
    images: UInt8[Array, "n h w c"],
    recipe: Recipe,
    *,
    sizes: Int[Array, "n 2"] | None = None,
    resize: int | None = None,
) -> Float[jax.Array, "n {recipe.size} {recipe.size} c"]:
    """The one view without chance, float32 (n, size, size, c), normalised, of uint8 images (n, h, w, c).

    Images of `recipe.size` are only normalised. Others are resized to `resize` (by default `recipe.size`) along their
    short side, bilinear, and cut at the centre. `sizes` as in `two_views`.
    """
    n, h, w, _ = images.shape
    _check_channels(images, recipe)
    if resize is None and sizes is None and (h, w) == (recipe.size, recipe.size):
        return normalise(images.astype(jnp.float32) / 255, recipe)
    sizes = jnp.broadcast_to(jnp.array([h, w], jnp.int32), (n, 2)) if sizes is None else sizes

    def view(image: Array, size: Array) -> jax.Array:
        image = image.astype(jnp.float32) / 255
        return center_crop_of_resize(image, resize or recipe.size, recipe.size, size[0], size[1])

    return normalise(jax.vmap(view)(images, sizes), recipe)


def normalise(image: Float[Array, "*shape c"], recipe: Recipe) -> Float[jax.Array, "*shape c"]:
    """(image - mean) / std of the recipe, per channel; image float32 in [0, 1], channels last."""
    return jnp.subtract(image, jnp.array(recipe.mean, jnp.float32)) / jnp.array(recipe.std, jnp.float32)


def _check_channels(images: Array, recipe: Recipe) -> None:
    if images.shape[-1] != len(recipe.mean):
        raise UserError(
            f"the images have {images.shape[-1]} channels and the recipe's mean has {len(recipe.mean)}",
            "Give mean and std one number per channel",
        )
