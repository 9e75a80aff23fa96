"""Decoding by Pillow, for images held in memory."""

import io
import os

import numpy as np
from PIL import Image

MODES = {1: "L", 3: "RGB"}  # Pillow's names of what a decoded image may be


def decode(data: bytes, channels: int = 3) -> np.ndarray:
    """Encoded image -> uint8 (h, w, channels): the one decoder of the array path, for whatever Pillow reads.

    Colour becomes luma where one channel is asked for, and gray three equal ones where three are. Of 16 bits the upper
    eight stay; an alpha channel is dropped; of an animation, the first picture.
    """
    with Image.open(io.BytesIO(data)) as image:
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers, whose range is unknown")
        if image.mode.startswith("I;16"):  # convert() would cut at 255
            image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        pixels = np.asarray(image if image.mode == MODES[channels] else image.convert(MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


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
