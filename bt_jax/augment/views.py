"""Two views of every image, made on the device inside the training step.

The image operations equal Pillow's and torchvision's to about one grey level: they work in floating point and clip
where Pillow clips, but do not round to grey levels in between. Nothing branches on a sample's draws, because `cond`
under `vmap` would compute both sides: an operation that is not drawn runs with parameters that make it the identity,
and one that a recipe never draws is not compiled at all. The recipes are in `recipes`.

Inside, an image is held as (height, channel, width). In that order both halves of a resize and of a blur are plain
matrix products, without a transpose, and the channels are planes whose minor axis is long.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bt_jax.augment import colour, filters
from bt_jax.augment.colour import Planes
from bt_jax.augment.recipes import Recipe, View
from bt_jax.messages import UserError
from bt_jax.shapes import Array, Float, Int, Key, UInt8, Whole


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


# Which of a view's 36 uniform numbers decides what. Another order would change every view.
CROP_AREAS, CROP_RATIOS, CROP_TOP, CROP_LEFT = slice(0, 10), slice(10, 20), 20, 21  # ten trials of a crop
FLIP, JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER = 22, 23, 24, 25, 26, 27, slice(28, 32)
GRAYSCALE, BLUR, BLUR_SIGMA, SOLARIZE = 32, 33, 34, 35


def draw(key: Key[jax.Array, ""], view: View, height: Whole, width: Whole) -> Draw:
    """Parameters of one view of a (height, width) image, which may be traced, with torchvision's distributions."""
    u = jax.random.uniform(key, (36,))  # one call, since a hash costs the same for one number as for many
    jitter = u[JITTER] < view.jitter

    def factor(strength: float, u: jax.Array) -> jax.Array:
        low = max(0.0, 1 - strength)
        return jnp.where(jitter, low + u * (1 + strength - low), 1.0)

    sigma = view.blur_sigma[0] + u[BLUR_SIGMA] * (view.blur_sigma[1] - view.blur_sigma[0])
    return Draw(
        *_draw_crop(u[CROP_AREAS], u[CROP_RATIOS], u[CROP_TOP], u[CROP_LEFT], view, height, width),
        flip=u[FLIP] < view.flip,
        brightness=factor(view.brightness, u[BRIGHTNESS]),
        contrast=factor(view.contrast, u[CONTRAST]),
        saturation=factor(view.saturation, u[SATURATION]),
        hue=jnp.where(jitter, view.hue * (2 * u[HUE] - 1), 0.0),
        order=u[ORDER],
        grayscale=u[GRAYSCALE] < view.grayscale,
        sigma=jnp.where(u[BLUR] < view.blur, sigma, 0.0),
        solarize=u[SOLARIZE] < view.solarize,
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
        luma = colour.luma(rgb)
        other = jnp.where(turn == 0, 0.0, jnp.where(turn == 1, luma.mean(), luma))
        rgb = colour.blend(rgb, other, factors[turn])
        if view.hue > 0:
            rgb = colour.hue(rgb, jnp.where(turn == 3, drawn.hue, 0.0))
        return tuple(rgb), None

    order = jnp.argsort(jnp.stack(drawn.order))
    rgb, _ = jax.lax.scan(place, tuple(rgb), order)
    return rgb


def _one_view(key: jax.Array, image: jax.Array, size: Array, view: View, recipe: Recipe, dtype: DTypeLike) -> jax.Array:
    """One view (size, size, c) of a uint8 (height, channel, width) image whose true (height, width) is `size`."""
    drawn = draw(key, view, size[0], size[1])
    canvas, channels = (image.shape[0], image.shape[2]), image.shape[1]
    rows, columns = filters.crop_matrices(canvas, *drawn[:4], recipe.size, view.interpolation, flip=drawn.flip)

    def product(*operands: jax.Array) -> jax.Array:
        # DEFAULT is one bfloat16 pass on TPUs, whose eight bits hold the grey levels and round as coarsely as Pillow.
        return filters.products(*(x.astype(dtype) for x in operands), precision=jax.lax.Precision.DEFAULT).astype(
            jnp.float32
        )

    image = jnp.clip(product(rows, image, columns) / 255, 0.0, 1.0)
    if channels == 3 and (view.jitter > 0 or view.grayscale > 0):
        rgb = tuple(image[:, channel] for channel in range(3))
        if view.jitter > 0:
            rgb = _jitter(rgb, drawn, view)
        if view.grayscale > 0:
            rgb = colour.blend(rgb, colour.luma(rgb), jnp.where(drawn.grayscale, 0.0, 1.0))
        image = jnp.stack(rgb, axis=1)
    if view.blur > 0:
        blur = filters.blur_matrix(drawn.sigma, recipe.size, view.blur_sigma[1])
        image = product(blur, image, blur)
    if view.solarize > 0:
        image = colour.solarize(image, jnp.where(drawn.solarize, view.solarize_threshold, 2.0))
    return normalise(filters.swap(image), recipe).astype(dtype)


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
        swapped = filters.swap(image)
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
        return filters.center_crop_of_resize(image, resize or recipe.size, recipe.size, size[0], size[1])

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
