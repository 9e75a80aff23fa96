"""Turns images upright by their EXIF orientation, which cameras and phones record.

A camera stores the pixels in the order of its sensor, and beside them the orientation, 1 to 8 (EXIF 2.32, tag 0x0112).
The decoders return the stored pixels. `turned` makes them upright, once, after decoding.
"""

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

UPRIGHT = 1
TAG = 0x0112
# The orientations for which `turned` exchanges rows and columns, then reverses the rows, then reverses the columns.
EXCHANGED, ROWS_REVERSED, COLUMNS_REVERSED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)

APPLY, IGNORE = "apply", "ignore"  # values of config.data.exif_orientation
CHOICES = ("auto", APPLY, IGNORE)

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG"
START_OF_SCAN, APP1 = 0xDA, 0xE1  # markers of JPEG
# Starts of the parts of a file in which Pillow finds the orientation.
IN_JPEG = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")
IN_PNG = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


def of(image: Image.Image) -> int:
    """The orientation of an image whose pixels are loaded, 1 to 8; 1 if it has none, or a damaged one."""
    if image.format == "TIFF":  # Pillow turns these itself
        return UPRIGHT
    try:
        orientation = image.getexif().get(TAG, UPRIGHT)
    except Exception:  # Pillow raises SyntaxError, struct.error, ValueError ... on damaged EXIF
        return UPRIGHT
    return orientation if orientation in range(1, 9) else UPRIGHT


def of_encoded(data: bytes) -> int:
    """Like `of`, for an encoded image; 1 if it cannot be read. A JPEG without EXIF takes microseconds."""
    if data.startswith(JPEG) and not _jpeg_may_have_one(data):
        return UPRIGHT
    if data.startswith(PNG) and not any(name in data for name in IN_PNG):
        return UPRIGHT
    try:
        with Image.open(io.BytesIO(data)) as image:
            return of(image)
    except Exception:  # the decoder reports the damage
        return UPRIGHT


def of_all(images: Iterable[bytes]) -> np.ndarray:
    """int32 (n,): `of_encoded` of each image."""
    return np.array([of_encoded(data) for data in images], np.int32)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Makes an image (h, w, c) upright; (w, h, c) for the orientations 5 to 8."""
    if orientation in EXCHANGED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in ROWS_REVERSED:
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in COLUMNS_REVERSED else pixels


def _jpeg_may_have_one(data: bytes) -> bool:
    """Whether a segment before the pixels may hold an orientation."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != START_OF_SCAN:
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        if data[at + 1] == APP1 and data.startswith(IN_JPEG, at + 4):
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False
