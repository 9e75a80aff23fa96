"""Colour, on a triple of planes: brightness, contrast, saturation, hue, grey, solarization."""

import jax
import jax.numpy as jnp

from bt_jax.shapes import Array, Float, Number

Planes = tuple[jax.Array, ...]  # red, green and blue, each (height, width)


def luma(rgb: Planes) -> jax.Array:
    """ITU-R 601-2 luma, Pillow's "L"."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def blend(rgb: Planes, other: float | jax.Array, factor: Number) -> Planes:
    """factor * rgb + (1 - factor) * other, clipped. A factor of 1 is exactly the identity."""
    rest = (1 - factor) * other
    return tuple(jnp.clip(factor * plane + rest, 0.0, 1.0) for plane in rgb)


def contrast(rgb: Planes, factor: Number) -> Planes:
    # Pillow rounds the mean to a grey level. That moves a pixel by at most 0.2 levels at a factor of 0.6, but would
    # turn the last bit of a sum, which may depend on the number of devices, into such a step: so it is left out.
    return blend(rgb, jnp.mean(luma(rgb)), factor)


def hue(rgb: Planes, delta: Number) -> Planes:
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


def planes(image: Array) -> Planes:
    return tuple(jnp.asarray(image[..., channel]) for channel in range(3))


def adjust_brightness(image: Float[Array, "h w 3"], factor: Number) -> Float[jax.Array, "h w 3"]:
    """Blend with black, (h, w, 3): factor 0 is black, 1 the image."""
    return jnp.stack(blend(planes(image), 0.0, factor), axis=-1)


def adjust_contrast(image: Float[Array, "h w 3"], factor: Number) -> Float[jax.Array, "h w 3"]:
    """Blend with the mean luma of the image, (h, w, 3)."""
    return jnp.stack(contrast(planes(image), factor), axis=-1)


def adjust_saturation(image: Float[Array, "h w 3"], factor: Number) -> Float[jax.Array, "h w 3"]:
    """Blend with the luma of each pixel, (h, w, 3): factor 0 is grey, 1 the image."""
    return jnp.stack(blend(planes(image), luma(planes(image)), factor), axis=-1)


def adjust_hue(image: Float[Array, "h w 3"], delta: Number) -> Float[jax.Array, "h w 3"]:
    """Turn the hue of (h, w, 3) by `delta` turns in [-0.5, 0.5], as in HSV."""
    return jnp.stack(hue(planes(image), delta), axis=-1)


def to_grayscale(image: Float[Array, "h w 3"]) -> Float[jax.Array, "h w 3"]:
    """Luma in all three channels, (h, w, 3)."""
    return jnp.stack([luma(planes(image))] * 3, axis=-1)


def solarize(image: Float[Array, "*shape"], threshold: Number = 128 / 255) -> Float[jax.Array, "*shape"]:
    """Invert values at and above the threshold, as on grey levels: a value counts as the level that it rounds to."""
    return jnp.where(image >= threshold - 0.5 / 255, 1 - image, image)
