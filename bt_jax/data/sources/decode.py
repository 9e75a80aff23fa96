"""Decoding by Pillow, for images held in memory."""

import io
import os

import numpy as np
from PIL import Image

from bt_jax.data.sources import formats

MODES = {1: "L", 3: "RGB"}  # Pillow's names of what a decoded image may be
LARGEST = 1 << 29  # pixels: as many as TensorFlow's PNG decoder takes; a damaged header may ask for any number
WHITE_IS_ZERO, BITS = 262, 258  # tags of TIFF: photometric interpretation, where 0 is white; bits a sample

# Pillow would warn of images of over 89 million pixels, and refuse those of over 179 million: see LARGEST.
Image.MAX_IMAGE_PIXELS = None
formats.add_plugins()


def decode(data: bytes, channels: int = 3) -> np.ndarray:
    """Encoded image -> uint8 (h, w, channels): the one decoder of the array path, for whatever Pillow reads.

    Colour becomes luma where one channel is asked for, and gray three equal ones where three are. Of more than 8 bits
    the upper eight stay; an alpha channel is dropped; of an animation, the first picture.

    Raises:
      ValueError: it has more than LARGEST pixels, or pixels of no known range. And whatever Pillow raises.
    """
    with Image.open(io.BytesIO(data)) as image:
        check_size(*image.size)
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers, whose range is unknown")
        if image.mode.startswith("I"):  # convert() would cut at 255
            image = Image.fromarray(_upper_eight(image))
        pixels = np.asarray(image if image.mode == MODES[channels] else image.convert(MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def check_size(width: int, height: int) -> None:
    """Raises ValueError for an image of more than LARGEST pixels."""
    if width * height > LARGEST:
        raise ValueError(f"it has {width}x{height} pixels, and {LARGEST:,} is the most")


def _upper_eight(image: Image.Image) -> np.ndarray:
    """uint8 (h, w) of gray of more than 8 bits, Pillow's modes "I;16", "I;16B", ... and "I"."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if image.mode == "I" and image.format not in ("PPM", "PNG"):  # of which Pillow makes 16 bits
        raise ValueError("its pixels are integers of 32 bits or with a sign, whose range is unknown")
    bits = tags.get(BITS, (16,))[0]  # 12 in some TIFF
    gray = (np.asarray(image).astype(np.int32) >> bits - 8).astype(np.uint8)
    # Pillow turns those of 8 bits round by itself.
    return 255 - gray if tags.get(WHITE_IS_ZERO) == 0 else gray


def try_decode(data: bytes | Exception, channels: int = 3) -> np.ndarray | Exception:
    """As `decode`, but hands an exception back, so that a pool of threads can go on."""
    if isinstance(data, Exception):
        return data
    try:
        return decode(data, channels)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, its own ...
        return error


def cores() -> int:
    """CPU cores that this process may use, which on a shared node are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
