"""Streaming input for data sets of large images: tf.data decodes on the host into a fixed canvas.

An image is decoded once, into the top left of a zero canvas, with its height and width beside it; both views are
cropped out of it on the device, which does all the rest. Nothing is saved in a checkpoint: the position in the stream
is the step number, and which images a global batch holds depends on (seed, step) alone - not on how many processes read
it, and not on where reading began.

Two kinds of shuffle:
- A true permutation of the split, another one in every epoch. Records are read in any order, by an index of the
  TFRecord files that is made at the start; each process reads its own rows only. For local files and cache files: the
  default.
- A window: files in an order drawn for the epoch, 16 read at once, through a buffer of `shuffle_buffer` records. For
  storage that reads well only in sequence (gs://, spinning disks). Each process then reads every record, though it
  decodes its own rows only; records more than a window apart in that sequence do not mix. Resuming within an epoch
  reads up to it.
"""

import atexit
import contextlib
import weakref
from collections.abc import Iterator

import numpy as np

from bt_jax.data import tf_decode
from bt_jax.data.readers import WINDOW, Ordered, Permuted, Windowed
from bt_jax.data.sources import decode
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.broken import Broken
from bt_jax.data.sources.decode import cores
from bt_jax.data.sources.tfds import tensorflow
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
    broken: Broken | None = None,
    channels: int = 3,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of this process, from step `start_step` on, exactly as an uninterrupted run would see them.

    Args:
      batch_size: images in a global batch. An epoch is floor(n / batch_size) full batches; the rest of that epoch's
        order is left out, another rest in each epoch.
      canvas: side of the canvas in pixels. An image with a longer side is shrunk to fit, a smaller one is not enlarged.
      shuffle_buffer: None: a permutation where the source allows it, else a window of WINDOW; 0: a permutation; more: a
        window of so many records (a cache file is permuted all the same).
      broken: is told of images that cannot be read, in whose place one black pixel arrives, without a label; by default
        the first one is an error.
      channels: 3 or 1, of the decoded images.
      process_index, process_count: this process takes rows [index * b, (index + 1) * b) of each global batch.

    Yields:
      {"image": uint8 (b, canvas, canvas, 3), "size": int32 (b, 2) height and width, "label": int32 (b,), -1 where there
      is none, "id": int32 (b,)} with b = batch_size // process_count.

    Raises:
      UserError: at once for arguments that do not fit, later for a record that cannot be read, naming its id.
    """
    span = source.span(split)
    count = span.stop - span.start
    if canvas < 1 or batch_size < 1 or start_step < 0 or not 0 <= process_index < process_count:
        raise UserError(
            f"canvas {canvas}, batch size {batch_size}, start step {start_step}, "
            f"process {process_index} of {process_count}",
            "Sizes are positive, a step is not negative, and a process is one of those counted",
        )
    if batch_size % process_count:
        raise UserError(f"batch size {batch_size} does not divide by {process_count} processes", "Choose a multiple")
    if batch_size > count:
        raise UserError(
            f"batch size {batch_size} is more than the {count} images of {source.name}, split {split!r}",
            "Choose a smaller one",
        )
    rows = slice(*(batch_size // process_count * i for i in (process_index, process_index + 1)))
    if shuffle_buffer is None:
        shuffle_buffer = 0 if source.random_access(span.base) else WINDOW
    if shuffle_buffer == 0 and not source.random_access(span.base):
        raise UserError(
            f"{source.name} cannot be read in any order where it lies", "Set shuffle_buffer, for example 8192"
        )
    if shuffle_buffer and hasattr(source, "files"):
        records = Windowed(source, span, batch_size, rows, seed, shuffle_buffer)
    else:
        records = Permuted(source, span, batch_size, rows, seed)
    return (
        _without(batch, "broken") for batch in _decoded(records, start_step, canvas, channels, broken or Broken(source))
    )


def eval_batches(
    source: Source,
    split: str,
    *,
    batch_size: int,
    canvas: int,
    broken: Broken | None = None,
    channels: int = 3,
    limit: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """The split once, in order: as `train_batches` with "mask" bool (b,), False where the last batch is filled up, and
    for images that cannot be read.

    Args:
      limit: so many images, evenly spaced, because a folder's lie class by class; the first ones of storage that reads
        well only in sequence. 0: all.
    """
    if batch_size < 1 or canvas < 1:
        raise UserError(f"batch size {batch_size}, canvas {canvas}", "Both must be positive")
    records = Ordered(source, source.span(split), batch_size, limit)
    batches = _decoded(records, 0, canvas, channels, broken or Broken(source))
    return (_fill(batch, batch_size) for batch in batches)


def _without(batch: dict[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    return {name: values for name, values in batch.items() if name != key}


def _fill(batch: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    batch = _without(batch, "broken") | {"mask": ~batch["broken"]}
    missing = rows - len(batch["id"])
    # An image of no pixels would be one of NaN after the crop.
    fill = {"size": 1}
    return {
        key: np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1), constant_values=fill.get(key, 0))
        for key, value in batch.items()
    }


def _decoded(records, start: int, canvas: int, channels: int, broken: Broken) -> Iterator[dict[str, np.ndarray]]:
    """Decodes in parallel and in order. Batches have "broken", bool (b,): images that are one black pixel instead."""
    tf = tensorflow()

    def black():
        return tf.zeros([1, 1, channels], tf.uint8), tf.ones([2], tf.int32)

    def decode(record):
        """An empty record is black: there was nothing to read, or it is known not to decode."""
        empty = tf.equal(record["image"], "")
        image, size = tf.cond(empty, black, lambda: tf_decode.fit(record["image"], canvas, channels))
        number, label = tf.cast(record["id"], tf.int32), tf.where(empty, -1, record["label"])
        return {"image": image, "size": size, "label": label, "id": number, "broken": empty}

    def decode_or_black(record):
        """A data set of one: the image, or where decoding fails what comes next, the black one."""
        image = tf.data.Dataset.from_tensors(record).map(tf_decode.plain(decode)).ignore_errors()
        empty = tf.data.Dataset.from_tensors(record | {"image": ""}).map(tf_decode.plain(decode))
        return image.concatenate(empty).take(1)

    rows, threads = records.rows.stop - records.rows.start, cores()
    shapes = {"image": [canvas, canvas, channels], "size": [2], "label": [], "id": [], "broken": []}

    def canvases(batch):
        """A data set of one batch. To look after each image by itself costs 0.15 ms an image, so it comes second, where
        one fails; the next epoch knows which."""
        known = tf.numpy_function(lambda ids: broken.known(records.span, ids), [batch["id"]], tf.bool)
        batch |= {"image": tf.where(tf_decode.shaped(known, [None]), "", batch["image"])}
        encoded = tf.data.Dataset.from_tensor_slices(batch)
        at_once = encoded.map(tf_decode.plain(decode), num_parallel_calls=threads)
        one_by_one = encoded.interleave(
            tf_decode.plain(decode_or_black), cycle_length=threads, num_parallel_calls=threads
        )
        # The batch is the canvas: padding each image first would write every pixel once more (0.3 of 1.7 ms an image).
        at_once, one_by_one = (images.padded_batch(rows, shapes) for images in (at_once, one_by_one))
        # After an error comes a batch of what is left.
        whole = at_once.ignore_errors().filter(
            tf_decode.plain(lambda found: tf.size(found["id"]) == tf.size(batch["id"]))
        )
        return whole.concatenate(one_by_one).take(1)

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False  # it would widen buffers of whole canvases until the memory is full
    batches = records.from_step(start).interleave(tf_decode.plain(canvases), cycle_length=2, num_parallel_calls=2)
    batches = batches.prefetch(1).with_options(options).as_numpy_iterator()  # tensor.numpy() would copy the canvases
    found = _named(batches, records, canvas, channels, broken)
    _UNTIL_EXIT.add(found)
    return found


def _named(batches, records, canvas: int, channels: int, broken: Broken):
    """Passes batches on; tells of what is broken in them."""
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
    """Ends whatever is still being read. tf.data would do it while Python shuts down, and wait for ever for threads of
    its own that wait for Python."""
    for batches in list(_UNTIL_EXIT):
        with contextlib.suppress(ValueError):  # a thread is in it, which keeps it until the process is gone
            batches.close()


def _why(records, number: int, canvas: int, channels: int) -> object:
    """What is wrong with an image: it is read and decoded once more, by itself."""
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
    except Exception as error:  # TensorFlow's, or through it Pillow's, as they come
        reason = str(getattr(error, "message", error))
        return reason.partition("\n")[0].split("} ")[-1].partition(" [Op:")[0]
    return "its file is damaged before it"
