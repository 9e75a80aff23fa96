"""Pictures as PNG data; Pillow is imported only to draw."""

import base64
import io
import math

import numpy as np

from bt_jax.report.page import esc

MAX_PIXELS = 96  # of a side; larger pictures are scaled down to it


def png(image, **options) -> str:
    """A Pillow image as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def heat_map(c: np.ndarray) -> str:
    """A matrix in [-1, 1] as a data URI: blue below 0, orange above, and clear at 0, which suits light and dark mode.

    Values that are not finite are magenta.
    """
    from PIL import Image

    levels = np.arange(255) - 127  # index 255 is for values that are not finite
    palette = [(28, 126, 214) if level < 0 else (232, 89, 12) for level in levels] + [(224, 49, 200)]
    opacity = bytes([*np.round(np.abs(levels) / 127 * 255).astype(int), 255])
    index = np.where(np.isfinite(c), np.round(np.clip(np.nan_to_num(c), -1, 1) * 127) + 127, 255).astype(np.uint8)
    image = Image.fromarray(index)
    image.putpalette([value for colour in palette for value in colour])
    return png(image, transparency=opacity)


def image_tag(pixels: np.ndarray, label: str, max_pixels: int = MAX_PIXELS) -> str:
    """An <img> of uint8 (h, w, 3), at most `max_pixels` wide and high."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((max_pixels, max_pixels))
    return f'<img src="{png(image)}" alt="{esc(label)}" width="{image.width}" height="{image.height}">'


def sprite_sheet(tiles: np.ndarray, max_pixels: int) -> tuple[str, int, int]:
    """All tiles in one PNG of 256 colours, a third of the size of true colour.

    Args:
      tiles: uint8 (n, s, s, 3).
      max_pixels: largest side of a tile in the sheet.

    Returns:
      The data URI, and the numbers of columns and rows of tiles; tile i is in row i // columns.
    """
    from PIL import Image

    side = min(max_pixels, tiles.shape[1])
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    whole = Image.new("RGB", (columns * side, rows * side))
    for i, tile in enumerate(tiles):
        whole.paste(Image.fromarray(tile).resize((side, side)), (i % columns * side, i // columns * side))
    return png(whole.quantize(256, method=Image.Quantize.MEDIANCUT)), columns, rows
