"""The rows of streamed batches: those of a process, and the padding of the last batch of an evaluation."""

import numpy as np

from bt_jax.data.sources.base import Source
from bt_jax.messages import UserError

Batch = dict[str, np.ndarray]


def process_rows(
    source: Source,
    split: str,
    *,
    batch_size: int,
    canvas: int,
    start_step: int,
    process_index: int,
    process_count: int,
) -> slice:
    """The rows of each global batch that a process takes; the arguments are those of `pipeline.train_batches`.

    Raises:
      UserError: the arguments do not fit.
    """
    span = source.span(split)
    count = span.stop - span.start
    if canvas < 1 or batch_size < 1 or start_step < 0 or not 0 <= process_index < process_count:
        raise UserError(
            f"These arguments do not fit: canvas {canvas}, batch size {batch_size}, start step {start_step}, "
            f"process {process_index} of {process_count}",
            "Give positive sizes, a step from 0 on, and a process from 0 to process_count - 1.",
        )
    if batch_size % process_count:
        raise UserError(
            f"The batch size {batch_size} is not a multiple of the {process_count} processes", "Choose a multiple."
        )
    if batch_size > count:
        raise UserError(
            f"The batch size {batch_size} is more than the {count} images of {source.name}, split {split!r}",
            "Choose a smaller batch size.",
        )
    share = batch_size // process_count
    return slice(share * process_index, share * (process_index + 1))


def check_positive(*, batch_size: int, canvas: int) -> None:
    """Raises UserError unless both are at least 1."""
    if batch_size < 1 or canvas < 1:
        raise UserError(
            f"Batch size {batch_size} and canvas {canvas} are not both positive", "Give at least 1 for each."
        )


def without_broken(batch: Batch) -> Batch:
    """The batch without its entry "broken"."""
    return {name: values for name, values in batch.items() if name != "broken"}


def padded_with_mask(batch: Batch, rows: int) -> Batch:
    """The batch padded to `rows`, with "mask", bool (rows,), in place of "broken".

    The mask is False for padding and for unreadable images.
    """
    batch = without_broken(batch) | {"mask": ~batch["broken"]}
    missing = rows - len(batch["id"])
    fill = {"size": 1}  # the crop of an image without pixels would be NaN
    return {
        name: np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1), constant_values=fill.get(name, 0))
        for name, values in batch.items()
    }
