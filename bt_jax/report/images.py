"""Pictures as PNG data; Pillow is imported when something is drawn."""

import base64
import io
import math

import numpy as np

from bt_jax.report.page import esc

MOST_PIXELS = 96  # larger pictures are scaled down to this


def png(image, **options) -> str:
    """A Pillow image as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def heat_map(c: np.ndarray) -> str:
    """c in [-1, 1]: blue below 0, orange above, clear at 0, so that the page shows through in light and dark mode."""
    from PIL import Image

    levels = np.arange(255) - 127  # index 255 is for what is not finite
    palette = [(28, 126, 214) if level < 0 else (232, 89, 12) for level in levels] + [(224, 49, 200)]
    opacity = bytes([*np.round(np.abs(levels) / 127 * 255).astype(int), 255])
    index = np.where(np.isfinite(c), np.round(np.clip(np.nan_to_num(c), -1, 1) * 127) + 127, 255).astype(np.uint8)
    image = Image.fromarray(index)
    image.putpalette([value for colour in palette for value in colour])
    return png(image, transparency=opacity)


def photograph(pixels: np.ndarray, label: str, most: int = MOST_PIXELS) -> str:
    """An <img> of uint8 (h, w, 3), at most `most` pixels wide and high."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((most, most))
    return f'<img src="{png(image)}" alt="{esc(label)}" width="{image.width}" height="{image.height}">'


def sheet(tiles: np.ndarray, most: int) -> tuple[str, int, int]:
    """All tiles in one PNG of 256 colours, a third of the size of true colour.

    Args:
      tiles: uint8 (n, s, s, 3); most: largest side of a tile in the sheet.

    Returns:
      The data URI, and how many columns and rows of tiles the sheet has; tile i lies in row i // columns.
    """
    from PIL import Image

    side = min(most, tiles.shape[1])
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    whole = Image.new("RGB", (columns * side, rows * side))
    for i, tile in enumerate(tiles):
        whole.paste(Image.fromarray(tile).resize((side, side)), (i % columns * side, i // columns * side))
    return png(whole.quantize(256, method=Image.Quantize.MEDIANCUT)), columns, rows
