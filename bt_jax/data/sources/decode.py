"""Decoding by Pillow, for data sets in memory."""

import io
import os

import numpy as np
from PIL import Image

from bt_jax.data.sources import formats, orientation

MODES = {1: "L", 3: "RGB"}  # channels of a decoded image -> Pillow's name of its mode
LARGEST = 1 << 29  # pixels: the limit of TensorFlow's PNG decoder; a damaged header may ask for any number
WHITE_IS_ZERO, BITS = 262, 258  # TIFF tags: photometric interpretation, of which value 0 means white; bits per sample

# Pillow would warn about images of over 89 million pixels and refuse those of over 179 million. LARGEST is our limit.
Image.MAX_IMAGE_PIXELS = None
formats.add_plugins()


def decode(data: bytes, channels: int = 3, *, upright: bool = False) -> np.ndarray:
    """Decodes an image to uint8 (h, w, channels): the one decoder of the array path, for all formats of Pillow.

    With one channel colour becomes luma; with three, gray becomes three equal channels. Pixels of more than 8 bits keep
    their upper eight. An alpha channel is dropped. An animation gives its first picture.

    Args:
      upright: turn the image by its EXIF orientation.

    Raises:
      ValueError: the image has more than LARGEST pixels, or pixels of unknown range.
      Exception: any error of Pillow.
    """
    with Image.open(io.BytesIO(data)) as stored:
        image = stored
        check_size(*image.size)
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers, whose range is unknown")
        if image.mode.startswith("I"):  # convert() would clip at 255
            image = Image.fromarray(_upper_eight(image))
        pixels = np.asarray(image if image.mode == MODES[channels] else image.convert(MODES[channels]))
        pixels = pixels.reshape(*pixels.shape[:2], channels)
        return orientation.turned(pixels, orientation.of(stored)) if upright else pixels


def check_size(width: int, height: int) -> None:
    """Raises ValueError for an image of more than LARGEST pixels."""
    if width * height > LARGEST:
        raise ValueError(f"it has {width}x{height} pixels, more than {LARGEST:,}")


def _upper_eight(image: Image.Image) -> np.ndarray:
    """uint8 (h, w) of a gray image of more than 8 bits, Pillow's modes "I;16", "I;16B", ... and "I"."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if image.mode == "I" and image.format not in ("PPM", "PNG"):  # Pillow scales these two to 16 bits
        raise ValueError("its pixels are integers of 32 bits or with a sign, whose range is unknown")
    bits = tags.get(BITS, (16,))[0]  # 12 in some TIFF
    gray = (np.asarray(image).astype(np.int32) >> bits - 8).astype(np.uint8)
    # Pillow inverts only images of 8 bits.
    return 255 - gray if tags.get(WHITE_IS_ZERO) == 0 else gray


def try_decode(data: bytes | Exception, channels: int = 3, *, upright: bool = False) -> np.ndarray | Exception:
    """Like `decode`, but returns an exception instead of raising it, so that a pool of threads continues."""
    if isinstance(data, Exception):
        return data
    try:
        return decode(data, channels, upright=upright)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, its own ...
        return error


def cores() -> int:
    """The number of CPU cores that this process may use. On a shared node they are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
