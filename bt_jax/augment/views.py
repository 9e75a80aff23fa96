"""Makes two views of every image, on the device, inside the training step.

The image operations equal those of Pillow and torchvision to about one grey level. They compute in floating point and
clip when Pillow clips, but do not round to grey levels between operations.

No code branches on random numbers, because `cond` under `vmap` computes both branches. An operation that is not chosen
for an image runs with parameters of the identity. An operation that the recipe never uses is not compiled.

Images inside this module are (height, channel, width). In that order, both products of a resize or a blur need no
transpose, and the last axis of a channel is long.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bt_jax.augment import colour, filters, recipes
from bt_jax.augment.colour import Planes
from bt_jax.augment.recipes import Recipe, View
from bt_jax.messages import UserError
from bt_jax.shapes import Array, Float, Int, Key, UInt8, Whole


class ViewParameters(NamedTuple):
    """The random parameters of one view of one image; an operation that is not chosen has those of the identity."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array
    flip: jax.Array
    brightness: jax.Array
    contrast: jax.Array
    saturation: jax.Array
    hue: jax.Array
    order: jax.Array  # (4,): sort keys of brightness, contrast, saturation and hue; the smallest is applied first
    grayscale: jax.Array
    sigma: jax.Array
    solarize: jax.Array


# The positions of the parameters among the 36 uniform numbers of a view. Another order would change every view.
CROP_AREAS, CROP_RATIOS, CROP_TOP, CROP_LEFT = slice(0, 10), slice(10, 20), 20, 21  # ten trials of a crop
FLIP, JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER = 22, 23, 24, 25, 26, 27, slice(28, 32)
GRAYSCALE, BLUR, BLUR_SIGMA, SOLARIZE = 32, 33, 34, 35


def sample_parameters(key: Key[jax.Array, ""], view: View, height: Whole, width: Whole) -> ViewParameters:
    """Samples the parameters of one view of a (height, width) image, with the distributions of torchvision.

    `height` and `width` may be traced.
    """
    u = jax.random.uniform(key, (36,))  # one call costs as much for 36 numbers as for one
    jitter = u[JITTER] < view.jitter

    def factor(strength: float, u: jax.Array) -> jax.Array:
        low = max(0.0, 1 - strength)
        return jnp.where(jitter, low + u * (1 + strength - low), 1.0)

    sigma = view.blur_sigma[0] + u[BLUR_SIGMA] * (view.blur_sigma[1] - view.blur_sigma[0])
    return ViewParameters(
        *_sample_crop(u[CROP_AREAS], u[CROP_RATIOS], u[CROP_TOP], u[CROP_LEFT], view, height, width),
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


def _sample_crop(
    u_area: jax.Array,
    u_ratio: jax.Array,
    u_top: jax.Array,
    u_left: jax.Array,
    view: View,
    height: Whole,
    width: Whole,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The box (top, left, height, width) of torchvision's RandomResizedCrop.

    It is the first of ten random boxes that fits into the image. If none does, it is the largest central box with a
    ratio in the range.
    """
    low, high = view.crop_ratio
    area = _as_float(height * width) * (view.crop_scale[0] + u_area * (view.crop_scale[1] - view.crop_scale[0]))
    ratio = jnp.exp(math.log(low) + u_ratio * (math.log(high) - math.log(low)))
    widths = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
    heights = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first, any_fits = jnp.argmax(fits), jnp.any(fits)

    max_width = jnp.minimum(width, jnp.round(_as_float(height) * high).astype(jnp.int32))
    max_height = jnp.minimum(height, jnp.round(_as_float(width) / low).astype(jnp.int32))
    box_height = jnp.where(any_fits, heights[first], max_height)
    box_width = jnp.where(any_fits, widths[first], max_width)
    spare_height, spare_width = height - box_height, width - box_width
    top = jnp.where(
        any_fits, jnp.floor(u_top * (spare_height + 1).astype(jnp.float32)).astype(jnp.int32), spare_height // 2
    )
    left = jnp.where(
        any_fits, jnp.floor(u_left * (spare_width + 1).astype(jnp.float32)).astype(jnp.int32), spare_width // 2
    )
    return top, left, box_height, box_width


def _as_float(pixels: Whole) -> int | jax.Array:
    """A traced int as float32. Strict dtype promotion allows no product of an int32 array and a float."""
    return pixels if isinstance(pixels, int) else jnp.asarray(pixels, jnp.float32)


def _jitter(rgb: Planes, parameters: ViewParameters, view: View) -> Planes:
    """Applies brightness, contrast, saturation and hue in their random order, in four iterations of one loop.

    Brightness, contrast and saturation are the same blend, with black, the mean luma or the luma. Each iteration has a
    blend and a rotation of the hue. One of them is the identity, by a factor of 1 or a delta of 0.

    The loop is a `scan`, not four calls: every channel after a hue or a saturation depends on all three before it. XLA
    may fuse four calls into one expression, and compute parts of it again and again (10 s instead of 1 ms for 16 images
    of 16 pixels on XLA's CPU backend of JAX 0.10).
    """
    factors = jnp.stack(
        [parameters.brightness, parameters.contrast, parameters.saturation, jnp.ones_like(parameters.hue)]
    )

    def apply(rgb: Planes, operation: jax.Array) -> tuple[Planes, None]:
        luma = colour.luma(rgb)
        other = jnp.where(operation == 0, 0.0, jnp.where(operation == 1, luma.mean(), luma))
        rgb = colour.blend(rgb, other, factors[operation])
        if view.hue > 0:
            rgb = colour.hue(rgb, jnp.where(operation == 3, parameters.hue, 0.0))
        return tuple(rgb), None

    order = jnp.argsort(jnp.stack(parameters.order))
    rgb, _ = jax.lax.scan(apply, tuple(rgb), order)
    return rgb


def _one_view(key: jax.Array, image: jax.Array, size: Array, view: View, recipe: Recipe, dtype: DTypeLike) -> jax.Array:
    """One view (size, size, c) of a uint8 canvas (height, channel, width).

    Args:
      size: (height, width) of the image at the top left of the canvas.
    """
    parameters = sample_parameters(key, view, size[0], size[1])
    canvas, channels = (image.shape[0], image.shape[2]), image.shape[1]
    rows, columns = filters.crop_matrices(
        canvas, *parameters[:4], recipe.size, view.interpolation, flip=parameters.flip
    )

    def product(*operands: jax.Array) -> jax.Array:
        # DEFAULT is one bfloat16 pass on TPUs. Eight bits represent all grey levels and round as coarsely as Pillow.
        return filters.products(*(x.astype(dtype) for x in operands), precision=jax.lax.Precision.DEFAULT).astype(
            jnp.float32
        )

    image = jnp.clip(product(rows, image, columns) / 255, 0.0, 1.0)
    if channels == 3 and (view.jitter > 0 or view.grayscale > 0):
        rgb = tuple(image[:, channel] for channel in range(3))
        if view.jitter > 0:
            rgb = _jitter(rgb, parameters, view)
        if view.grayscale > 0:
            rgb = colour.blend(rgb, colour.luma(rgb), jnp.where(parameters.grayscale, 0.0, 1.0))
        image = jnp.stack(rgb, axis=1)
    if view.blur > 0:
        blur = filters.blur_matrix(parameters.sigma, recipe.size, view.blur_sigma[1])
        image = product(blur, image, blur)
    if view.solarize > 0:
        image = colour.solarize(image, jnp.where(parameters.solarize, view.solarize_threshold, 2.0))
    return normalise(filters.swap(image), recipe).astype(dtype)


def two_views(
    key: Key[jax.Array, ""],
    images: UInt8[Array, "n h w c"],
    recipe: Recipe | str,
    *,
    size: int | None = None,
    ids: Int[Array, " n"] | None = None,
    sizes: Int[Array, "n 2"] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[jax.Array, "n side side c"], Float[jax.Array, "n side side c"]]:
    """Makes two independent random views of every image.

    Args:
      key: random key of the step. The pixels of a view depend on (key, id) alone, not on the position in the batch or
        the device.
      images: uint8 (n, h, w, c).
      recipe: "imagenet" (the paper's), "cifar", "lightly_cifar", "grayscale" (for c = 1), or a `Recipe`. Under
        `jax.jit` it is a static argument.
      size: height and width of the views in pixels, by default those of the recipe: 224, 32, 32, 28.
      ids: int (n,), by default 0..n-1.
      sizes: int32 (n, 2), the (height, width) of images at the top left of a larger canvas.
      dtype: of the views and of the operands of the matrix products; colours are always computed in float32.

    Returns:
      view1, view2: (n, size, size, c), normalised.

    Raises:
      UserError: the images and the recipe differ in their number of channels, or there is no such recipe.
    """
    recipe = recipes.find(recipe, size)
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
    recipe: Recipe | str,
    *,
    size: int | None = None,
    sizes: Int[Array, "n 2"] | None = None,
    resize: int | None = None,
) -> Float[jax.Array, "n side side c"]:
    """The view for evaluation, which is not random.

    Images of `size` pixels are only normalised. The short side of other images is resized to `resize`, bilinear, and
    their centre is cropped.

    Args:
      images: uint8 (n, h, w, c).
      recipe, size, sizes: as in `two_views`.
      resize: by default `size`.

    Returns:
      float32 (n, size, size, c), normalised.

    Raises:
      UserError: the images and the recipe differ in their number of channels, or there is no such recipe.
    """
    recipe = recipes.find(recipe, size)
    n, h, w, _ = images.shape
    _check_channels(images, recipe)
    if resize is None and sizes is None and (h, w) == (recipe.size, recipe.size):
        return normalise(images.astype(jnp.float32) / 255, recipe)
    sizes = jnp.broadcast_to(jnp.array([h, w], jnp.int32), (n, 2)) if sizes is None else sizes

    def view(image: Array, size: Array) -> jax.Array:
        image = image.astype(jnp.float32) / 255
        return filters.center_crop_of_resize(image, resize or recipe.size, recipe.size, size[0], size[1])

    return normalise(jax.vmap(view)(images, sizes), recipe)


def normalise(image: Float[Array, "*shape c"], recipe: Recipe | str) -> Float[jax.Array, "*shape c"]:
    """(image - mean) / std of the recipe, per channel; image float32 in [0, 1], channels last."""
    recipe = recipes.find(recipe)
    return jnp.subtract(image, jnp.array(recipe.mean, jnp.float32)) / jnp.array(recipe.std, jnp.float32)


def _check_channels(images: Array, recipe: Recipe) -> None:
    if images.shape[-1] != len(recipe.mean):
        raise UserError(
            f"The images have {images.shape[-1]} channels, but config.views.mean has {len(recipe.mean)} numbers",
            "Set mean and std to one number per channel.",
        )
