"""Streaming input for data sets of large images: tf.data decodes on the host into a fixed canvas.

Each image is decoded once, into the top left of a zero canvas, together with its height and width. The device crops
both views out of the canvas and does all other work. Checkpoints hold no position in the stream: it is the step number.
The images of a global batch depend on (seed, step) alone, not on the number of processes or on the step of a resume.

Two kinds of shuffle:
- A true permutation of the split, a new one in every epoch. An index of the TFRecord files, made at the start, allows
  reading in any order, and each process reads its own rows only. This is the default for local files and cache files.
- A window: the files come in a random order, 16 at once, through a buffer of `shuffle_buffer` records. It is for
  storage that is fast only in sequence (gs://, spinning disks). Each process reads every record but decodes its own
  rows only. Records that are more than a window apart in that sequence do not mix. A resume within an epoch first
  reads the records before its step.
"""

import atexit
import contextlib
import weakref
from collections.abc import Iterator

import numpy as np

from bt_jax.data import tf_decode
from bt_jax.data.batch_rows import check_positive, padded_with_mask, process_rows, without_broken
from bt_jax.data.readers import WINDOW, Ordered, Permuted, Windowed
from bt_jax.data.sources import decode, orientation
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.broken import UnreadableImages
from bt_jax.data.sources.decode import cores
from bt_jax.data.sources.tfds import short_reason, tensorflow
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
) -> Iterator[dict[str, np.ndarray]]:
    """Yields endless batches of this process from step `start_step` on, equal to those of an uninterrupted run.

    Args:
      batch_size: images in a global batch. An epoch is floor(n / batch_size) full batches. The images after the last
        full batch are left out; they are other images in each epoch.
      canvas: side of the canvas in pixels. An image with a longer side is shrunk to fit, a smaller one is not enlarged.
      shuffle_buffer: number of records in the window; 0: a permutation; None: a permutation if the source allows it,
        otherwise a window of WINDOW. A cache file is always permuted.
      broken: records unreadable images. Such an image becomes one black pixel without a label. By default the first one
        is an error.
      channels: 3 or 1, of the decoded images.
      process_index, process_count: this process takes rows [index * b, (index + 1) * b) of each global batch.

    Yields:
      {"image": uint8 (b, canvas, canvas, channels), "size": int32 (b, 2) height and width, "label": int32 (b,), -1
      without a label, "id": int32 (b,)} with b = batch_size // process_count.

    Raises:
      UserError: at once for arguments that do not fit; later, with its id, for a record that cannot be read.
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
    if shuffle_buffer is None:
        shuffle_buffer = 0 if source.random_access(span.base) else WINDOW
    if shuffle_buffer == 0 and not source.random_access(span.base):
        raise UserError(
            f"{source.name} cannot be read in random order from its storage", "Set shuffle_buffer, for example 8192."
        )
    if shuffle_buffer and hasattr(source, "files"):
        records = Windowed(source, span, batch_size, rows, seed, shuffle_buffer)
    else:
        records = Permuted(source, span, batch_size, rows, seed)
    batches = _decoded(records, start_step, canvas, channels, broken or UnreadableImages(source))
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
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the split once, in order: the batches of `train_batches` with "mask" bool (b,).

    The mask is False for the padding of the last batch and for unreadable images.

    Args:
      limit: number of images; 0: all of them. They are evenly spaced, because a folder is sorted by class. From storage
        that is fast only in sequence they are the first ones.
    """
    check_positive(batch_size=batch_size, canvas=canvas)
    records = Ordered(source, source.span(split), batch_size, limit)
    batches = _decoded(records, 0, canvas, channels, broken or UnreadableImages(source))
    return (padded_with_mask(batch, batch_size) for batch in batches)


def _decoded(
    records, start: int, canvas: int, channels: int, broken: UnreadableImages
) -> Iterator[dict[str, np.ndarray]]:
    """Decodes in parallel and in order. Batches have "broken", bool (b,): True for images replaced by a black pixel."""
    tf = tensorflow()

    def black():
        return tf.zeros([1, 1, channels], tf.uint8), tf.ones([2], tf.int32)

    def decode(record):
        """Decodes a record. An empty one becomes black: it could not be read, or is known to be undecodable."""
        empty = tf.equal(record["image"], "")
        image, size = tf.cond(empty, black, lambda: tf_decode.fit(record["image"], canvas, channels))
        if "orientation" in record:
            image, size = tf_decode.turned(image, size, record["orientation"])
        number, label = tf.cast(record["id"], tf.int32), tf.where(empty, -1, record["label"])
        return {"image": image, "size": size, "label": label, "id": number, "broken": empty}

    def decode_or_black(record):
        """A data set of one element: the image, or the black image if decoding fails."""
        image = tf.data.Dataset.from_tensors(record).map(tf_decode.plain(decode)).ignore_errors()
        empty = tf.data.Dataset.from_tensors(record | {"image": ""}).map(tf_decode.plain(decode))
        return image.concatenate(empty).take(1)

    rows, threads = records.rows.stop - records.rows.start, cores()
    shapes = {"image": [canvas, canvas, channels], "size": [2], "label": [], "id": [], "broken": []}

    def canvases(batch):
        """A data set of one batch.

        Error handling per image costs 0.15 ms an image, so it is used only after an image of the batch has failed. The
        next epoch skips that image.
        """
        known = tf.numpy_function(lambda ids: broken.known(records.span, ids), [batch["id"]], tf.bool)
        batch |= {"image": tf.where(tf_decode.shaped(known, [None]), "", batch["image"])}
        if records.source.upright:
            found = tf.numpy_function(orientation.of_all, [batch["image"]], tf.int32, stateful=False)
            batch |= {"orientation": tf_decode.shaped(found, [None])}
        encoded = tf.data.Dataset.from_tensor_slices(batch)
        at_once = encoded.map(tf_decode.plain(decode), num_parallel_calls=threads)
        one_by_one = encoded.interleave(
            tf_decode.plain(decode_or_black), cycle_length=threads, num_parallel_calls=threads
        )
        # Images are padded straight into the batch: padding each one first would write every pixel twice (0.3 of 1.7 ms
        # an image).
        at_once, one_by_one = (images.padded_batch(rows, shapes) for images in (at_once, one_by_one))
        # After an error, ignore_errors() continues with a shorter batch of the remaining images: drop it.
        whole = at_once.ignore_errors().filter(
            tf_decode.plain(lambda decoded: tf.size(decoded["id"]) == tf.size(batch["id"]))
        )
        return whole.concatenate(one_by_one).take(1)

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False  # it would enlarge buffers of canvases until memory is full
    batches = records.from_step(start).interleave(tf_decode.plain(canvases), cycle_length=2, num_parallel_calls=2)
    batches = batches.prefetch(1).with_options(options).as_numpy_iterator()  # tensor.numpy() would copy the canvases
    stream = _recorded(batches, records, canvas, channels, broken)
    _UNTIL_EXIT.add(stream)
    return stream


def _recorded(batches, records, canvas: int, channels: int, broken: UnreadableImages):
    """Yields batches and records their unreadable images."""
    import tensorflow as tf

    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            raise records.failure or error from None
        numbers = batch["id"][batch["broken"]]
        for number in numbers[~broken.known(records.span, numbers)]:
            broken.add(records.span, int(number), _why(records, int(number), canvas, channels))
        yield batch


_UNTIL_EXIT = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Closes all streams that are still open.

    tf.data would close them while Python shuts down, and wait for ever for its own threads, which wait for Python.
    """
    for batches in list(_UNTIL_EXIT):
        with contextlib.suppress(ValueError):  # a thread is running it, and keeps it until the process exits
            batches.close()


def _why(records, number: int, canvas: int, channels: int) -> object:
    """Why an image is unreadable: reads and decodes it alone to get the error."""
    try:
        ((data, _),) = records.source.encoded(f"{records.span.base}[{number}:{number + 1}]")
    except UserError as error:
        data = error
    if isinstance(data, UserError):
        return data.cause
    by_pillow = decode.try_decode(data, channels)
    if isinstance(by_pillow, Exception):
        return by_pillow
    try:
        tf_decode.fit(data, canvas, channels)
    except Exception as error:  # an error of TensorFlow, or of Pillow inside TensorFlow
        return short_reason(error)
    return "its file is damaged before this record"
