"""Images as an encoder takes them: normalised, channels last."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bt_jax.messages import UserError
from bt_jax.models import Net


def preprocess(images: ArrayLike, net: Net) -> jax.Array:
    """Normalises stored pixels as in training, for `net.apply`. It neither resizes nor crops.

    The encoder takes images of any size, but its features are best near the size of its training images.

    Args:
      images: uint8, one image (h, w, c) or a batch (n, h, w, c), with c = 3, or c = 1 for gray; one gray image may be
        (h, w). For an encoder of colour images gray becomes three equal channels.
      net: of `bt_jax.load_encoder`.

    Returns:
      float32 (n, h, w, channels of the encoder), with n = 1 for one image: (images / 255 - net.mean) / net.std.

    Raises:
      UserError: another dtype or layout, other channels, or a net that does not state mean and std.
    """
    if net.mean is None or net.std is None:
        raise UserError(
            "This encoder does not state mean and std of its training images",
            "Set them: net = dataclasses.replace(net, mean=(...), std=(...)), for pixels in [0, 1].",
        )
    pixels = _stored_pixels(images)
    channels = len(net.mean)
    if pixels.shape[-1] != channels:
        if channels == 1:
            raise UserError(
                f"The images of shape {np.shape(images)} are in colour, but the encoder takes gray ones",
                'Convert them, such as by Image.convert("L") of Pillow.',
            )
        pixels = jnp.repeat(pixels, channels, axis=-1)
    mean, std = (jnp.array(values, jnp.float32) for values in (net.mean, net.std))
    return (pixels.astype(jnp.float32) / 255 - mean) / std


def _stored_pixels(images: ArrayLike) -> jax.Array:
    """The images as uint8 (n, h, w, 1 or 3)."""
    try:
        pixels = images if isinstance(images, jax.Array) else np.asarray(images)
    except ValueError:  # a list
        raise UserError("The images differ in shape", "Resize them to one size, or pass them one by one.") from None
    shape = pixels.shape
    if pixels.dtype != np.uint8:
        scaled = np.issubdtype(pixels.dtype, np.floating) or pixels.dtype == jnp.bfloat16
        raise UserError(
            f"The images are {pixels.dtype}, not uint8",
            "Pass the pixels as they are stored, 0 to 255, without scaling."
            if scaled
            else "If all values are 0 to 255, convert them: np.asarray(images, np.uint8).",
        )
    if len(shape) == 2:
        pixels = pixels[..., None]
    if pixels.ndim not in (3, 4) or pixels.shape[-1] not in (1, 3):
        raise UserError(f"Images of shape {shape} are not (n, h, w, c) or (h, w, c) with 1 or 3 channels", _fix(shape))
    return jnp.asarray(pixels if pixels.ndim == 4 else pixels[None])


def _fix(shape: tuple[int, ...]) -> str:
    if len(shape) in (3, 4) and shape[-1] == 4:
        return "Drop the alpha channel: images[..., :3]."
    if len(shape) in (3, 4) and shape[-3] in (1, 3):
        return "Move the channels to the end: np.moveaxis(images, -3, -1)."
    if len(shape) == 3:
        return "Add the channel axis of gray images: images[..., None]."
    return "Give the images as arrays of pixels."
