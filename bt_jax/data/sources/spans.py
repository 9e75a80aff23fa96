"""Splits: their names and their ranges of images."""

from typing import NamedTuple

import numpy as np

from bt_jax.messages import UserError


class Arrays(NamedTuple):
    """A whole split in memory: images uint8 (n, h, w, c); labels int32 (n,), or None if it has none."""

    images: np.ndarray
    labels: np.ndarray | None


class Span(NamedTuple):
    """The records [start, stop) of the split `base`; positions are ids."""

    base: str
    start: int
    stop: int


def boundary(text: str, count: int) -> int:
    """One end of a slice, as a position in [0, count]; percentages are rounded as in TFDS."""
    number = int(text.rstrip("%"))
    if text.endswith("%"):
        if abs(number) > 100:
            raise UserError(f"{text} is more than a whole split", "Use percentages from -100% to 100%.")
        number = round(number * count / 100)
    return min(max(number + count if text.startswith("-") else number, 0), count)
