"""Operations on colours: brightness, contrast, saturation, hue, grey, solarization."""

import jax
import jax.numpy as jnp

from bt_jax.shapes import Array, Float, Number

Planes = tuple[jax.Array, ...]  # red, green and blue, each (height, width)


def luma(rgb: Planes) -> jax.Array:
    """The luma of ITU-R 601-2, which is Pillow's mode "L"."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def blend(rgb: Planes, other: float | jax.Array, factor: Number) -> Planes:
    """factor * rgb + (1 - factor) * other, clipped. A factor of 1 is exactly the identity."""
    rest = (1 - factor) * other
    return tuple(jnp.clip(factor * plane + rest, 0.0, 1.0) for plane in rgb)


def contrast(rgb: Planes, factor: Number) -> Planes:
    """The blend with the mean luma.

    Pillow rounds the mean to a grey level, which changes a pixel by at most 0.2 levels at a factor of 0.6. There is no
    rounding here: it could turn the last bit of the mean, which depends on the number of devices, into a level.
    """
    return blend(rgb, jnp.mean(luma(rgb)), factor)


def hue(rgb: Planes, delta: Number) -> Planes:
    """Rotates the hue by `delta` turns, up to half a turn, at constant HSV saturation and value.

    A channel is the value minus chroma * clip(2 - d, 0, 1). d is the distance of the hue from the complement of the
    channel, in sixths of a turn around the circle. The code multiplies all hues by the chroma. It thus needs no
    division, and grey is no special case.
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
    """The three channels of (h, w, 3)."""
    return tuple(jnp.asarray(image[..., channel]) for channel in range(3))


def adjust_brightness(image: Float[Array, "h w 3"], factor: Number) -> Float[jax.Array, "h w 3"]:
    """Blends (h, w, 3) with black: factor 0 is black, 1 is the image."""
    return jnp.stack(blend(planes(image), 0.0, factor), axis=-1)


def adjust_contrast(image: Float[Array, "h w 3"], factor: Number) -> Float[jax.Array, "h w 3"]:
    """Blends (h, w, 3) with the mean luma of the image: factor 0 is grey, 1 is the image."""
    return jnp.stack(contrast(planes(image), factor), axis=-1)


def adjust_saturation(image: Float[Array, "h w 3"], factor: Number) -> Float[jax.Array, "h w 3"]:
    """Blends (h, w, 3) with the luma of each pixel: factor 0 is grey, 1 is the image."""
    return jnp.stack(blend(planes(image), luma(planes(image)), factor), axis=-1)


def adjust_hue(image: Float[Array, "h w 3"], delta: Number) -> Float[jax.Array, "h w 3"]:
    """Rotates the HSV hue of (h, w, 3) by `delta` turns in [-0.5, 0.5]."""
    return jnp.stack(hue(planes(image), delta), axis=-1)


def to_grayscale(image: Float[Array, "h w 3"]) -> Float[jax.Array, "h w 3"]:
    """The luma in all three channels, (h, w, 3)."""
    return jnp.stack([luma(planes(image))] * 3, axis=-1)


def solarize(image: Float[Array, "*shape"], threshold: Number = 128 / 255) -> Float[jax.Array, "*shape"]:
    """Inverts values at and above the threshold. As in Pillow, a value is compared after rounding to a grey level."""
    return jnp.where(image >= threshold - 0.5 / 255, 1 - image, image)
