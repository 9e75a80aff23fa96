"""Streaming input without TensorFlow: threads decode by Pillow onto a canvas, in the order of `pipeline`.

It yields the batches of `pipeline`: the same images in the same order, with the same pixels except for JPEGs that are
shrunk during decoding. It reads folders and cache files. Only TensorFlow reads TFRecord files in sequence, as buckets
need.

Threads are enough, because Pillow releases the interpreter lock while it decodes and resizes.
"""

import io
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from bt_jax.data.batch_rows import Batch, check_positive, padded_with_mask, process_rows, without_broken
from bt_jax.data.readers import Ordered, Permuted
from bt_jax.data.sources import decode, orientation
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.broken import UnreadableImages
from bt_jax.messages import UserError


def train_batches(
    source: Source,
    split: str,
    *,
    batch_size: int,
    canvas: int,
    seed: int,
    start_step: int = 0,
    shuffle_buffer: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    broken: UnreadableImages | None = None,
    channels: int = 3,
) -> Iterator[Batch]:
    """Yields endless batches of this process from step `start_step` on; see `pipeline.train_batches`.

    Raises:
      UserError: `shuffle_buffer` asks for a window, the storage is fast only in sequence, or the arguments do not fit.
    """
    rows = process_rows(
        source,
        split,
        batch_size=batch_size,
        canvas=canvas,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
    )
    span = source.span(split)
    _require_random_access(source, span.base)
    if shuffle_buffer:
        raise UserError(
            f"The Pillow reader shuffles by a permutation, not in a window of {shuffle_buffer}",
            "Set --config.data.shuffle_buffer=0, or --config.data.reader=tensorflow.",
        )
    records, steps = Permuted(source, span, batch_size, rows, seed), itertools.count(start_step)
    batches = _decoded(records, steps, canvas, channels, broken or UnreadableImages(source))
    return (without_broken(batch) for batch in batches)


def eval_batches(
    source: Source,
    split: str,
    *,
    batch_size: int,
    canvas: int,
    broken: UnreadableImages | None = None,
    channels: int = 3,
    limit: int = 0,
) -> Iterator[Batch]:
    """Yields the split once, in order, with "mask"; see `pipeline.eval_batches`."""
    check_positive(batch_size=batch_size, canvas=canvas)
    span = source.span(split)
    _require_random_access(source, span.base)
    records = Ordered(source, span, batch_size, limit)
    steps = iter(range(records.steps))
    batches = _decoded(records, steps, canvas, channels, broken or UnreadableImages(source))
    return (padded_with_mask(batch, batch_size) for batch in batches)


def _require_random_access(source: Source, base: str) -> None:
    if not source.random_access(base):
        raise UserError(
            f"The storage of {source.name} can only be read in sequence, which needs TensorFlow",
            "Run pip install tensorflow tensorflow-datasets, or copy the data set to a local disk.",
        )


def _decoded(
    records: Permuted, steps: Iterator[int], canvas: int, channels: int, broken: UnreadableImages
) -> Iterator[Batch]:
    """Yields batches with "broken", bool (b,): True for images replaced by a black pixel."""
    with ThreadPoolExecutor(1) as disk, ThreadPoolExecutor(decode.cores()) as pool:
        ahead = disk.submit(_read, records, steps)  # the next batch is read while this one is decoded
        while (encoded := ahead.result()) is not None:
            ahead = disk.submit(_read, records, steps)
            yield _canvases(records, *encoded, pool, canvas, channels, broken)


def _read(records: Permuted, steps: Iterator[int]):
    step = next(steps, None)
    return None if step is None else records.read(step)


def _canvases(records, images, labels, ids, pool, canvas: int, channels: int, broken: UnreadableImages) -> Batch:
    batch = {
        "image": np.zeros((len(ids), canvas, canvas, channels), np.uint8),
        "size": np.ones((len(ids), 2), np.int32),
        "label": labels,
        "id": ids.astype(np.int32),
        "broken": broken.known(records.span, ids),
    }

    def fill(row: int) -> Exception | None:
        if batch["broken"][row]:
            return None
        try:
            pixels = fit(images[row], canvas, channels, upright=records.source.upright)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others
            return error
        height, width, _ = pixels.shape
        batch["image"][row, :height, :width], batch["size"][row] = pixels, (height, width)
        return None

    for row, error in enumerate(pool.map(fill, range(len(ids)))):
        if error is not None:
            broken.add(records.span, int(ids[row]), error)
            batch["broken"][row] = True
    batch["label"] = np.where(batch["broken"], -1, labels).astype(np.int32)
    return batch


def fit(data: bytes | Exception, canvas: int, channels: int = 3, *, upright: bool = False) -> np.ndarray:
    """Decodes an image to uint8 (h, w, channels) with no side over `canvas`; a smaller image keeps its size.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that still covers the result: fewer coefficients take less time.

    Args:
      upright: turn the image by its EXIF orientation.

    Raises:
      Exception: the image cannot be read.
    """
    if isinstance(data, Exception):
        raise data
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        longest = max(width, height)
        size = (width, height)
        if longest > canvas:
            size = (max(1, round(width * canvas / longest)), max(1, round(height * canvas / longest)))
        if image.format in ("JPEG", "MPO") and longest >= 2 * canvas:
            decode.check_size(width, height)
            image.draft(None, size)
            pixels = np.asarray(image.convert(decode.MODES[channels]))
            pixels = pixels.reshape(*pixels.shape[:2], channels)
        else:
            pixels = decode.decode(data, channels)
    for axis, length in enumerate(reversed(size)):
        if pixels.shape[axis] != length:
            pixels = _area_means(pixels, length, axis)
    pixels = pixels if pixels.dtype == np.uint8 else np.rint(pixels).astype(np.uint8)
    return orientation.turned(pixels, orientation.of_encoded(data)) if upright else pixels


def _area_means(pixels: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Shrinks an axis to `length` by means over areas, with fractions of pixels, like TensorFlow's "area"; float32.

    Pillow's BOX filter uses whole pixels only.
    """
    pixels = np.moveaxis(pixels, axis, 0)
    count = len(pixels)
    sums = np.concatenate([np.zeros_like(pixels[:1], np.float32), np.cumsum(pixels, axis=0, dtype=np.float32)])
    edges = np.arange(length + 1) * (count / length)
    whole = np.minimum(edges.astype(int), count - 1)
    part = (edges - whole).astype(np.float32)[:, None, None]
    upto = sums[whole] + part * pixels[whole]
    return np.moveaxis(np.diff(upto, axis=0) * np.float32(length / count), 0, axis)
