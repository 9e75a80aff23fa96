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
import threading
import weakref
from collections.abc import Iterator

import numpy as np

from bt_jax.data.sources import base
from bt_jax.data.sources.base import Broken, Source, Span, cores, evenly
from bt_jax.data.sources.tfds import tensorflow
from bt_jax.messages import UserError

WINDOW = 8192  # records: about 0.9 GB of ImageNet JPEGs


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
        records = _Windowed(source, span, batch_size, rows, seed, shuffle_buffer)
    else:
        records = _Permuted(source, span, batch_size, rows, seed)
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
    records = _Ordered(source, source.span(split), batch_size, limit)
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


# The order of records ------------------------------------------------------------------------------------------------
#
# `from_step(step)` of each class is a tf.data of encoded batches {"image": (b,) string, "label": (b,) int32, "id": (b,)
# int64} from that step on: whatever is skipped is skipped before it is decoded.


class _Permuted:
    """Batch k of an epoch is the k-th piece of a permutation of the split."""

    def __init__(self, source: Source, span: Span, batch_size: int, rows: slice, seed: int):
        self.source, self.span, self.batch_size = source, span, batch_size
        self.rows, self.seed = rows, seed
        self.steps_per_epoch = (span.stop - span.start) // batch_size
        self.failure = None
        self._epoch, self._order, self._lock = -1, None, threading.Lock()

    def from_step(self, start: int, stop: int = np.iinfo(np.int64).max):
        import tensorflow as tf

        steps = tf.data.Dataset.range(start, stop)
        # Two at a time: one waits for the disk while the other is unpacked.
        return steps.map(_plain(self._fetch), num_parallel_calls=2, deterministic=True)

    def _fetch(self, step):
        import tensorflow as tf

        image, label, number = tf.numpy_function(self._read, [step], (tf.string, tf.int32, tf.int64), stateful=False)
        return {"image": _shaped(image, [None]), "label": _shaped(label, [None]), "id": _shaped(number, [None])}

    def _read(self, step):
        try:
            ids = self.ids(int(step))
            images, labels = zip(*self.source.try_read(self.span.base, ids), strict=True)
            images = [b"" if isinstance(image, UserError) else image for image in images]
        except Exception as error:
            self.failure = error  # tf.data would turn it into an error of its own
            raise
        labels = np.array([-1 if label is None else label for label in labels], np.int32)
        return np.array(images, object), labels, ids

    def ids(self, step: int) -> np.ndarray:
        """int64 (b,): the ids of this process's rows of a global batch."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        with self._lock:
            if epoch != self._epoch:
                self._epoch, self._order = epoch, permutation(self.span.stop - self.span.start, self.seed, epoch)
            order = self._order
        return self.span.start + order[batch * self.batch_size :][self.rows]


class _Ordered(_Permuted):
    """Every record once, or `limit` of them, in the order of ids; the last batch is shorter."""

    def __init__(self, source: Source, span: Span, batch_size: int, limit: int = 0):
        super().__init__(source, span, batch_size, slice(0, batch_size), seed=0)
        self._ids = span.start + evenly(span.stop - span.start, limit)

    def from_step(self, start):
        if not self.source.random_access(self.span.base):
            first, stop = self.span.start + start * self.batch_size, self.span.start + len(self._ids)
            return self.source.tf_dataset(f"{self.span.base}[{first}:{stop}]").batch(self.batch_size)
        return super().from_step(start, -(-len(self._ids) // self.batch_size))

    def ids(self, step):
        return self._ids[step * self.batch_size :][: self.batch_size]


class _Windowed:
    """Files in an order drawn for the epoch, read in sequence, through a shuffle buffer."""

    failure = None

    def __init__(self, source, span: Span, batch_size: int, rows: slice, seed: int, window: int):
        self.source, self.span, self.batch_size = source, span, batch_size
        self.rows, self.seed, self.window = rows, seed, window
        self.steps_per_epoch = (span.stop - span.start) // batch_size
        files = source.files(span.base)
        ends = [first for _, first in files[1:]] + [source.splits[span.base]]
        files = [(path, np.int64(first), np.int64(end)) for (path, first), end in zip(files, ends, strict=True)]
        self.files = [(path, first, end) for path, first, end in files if first < span.stop and end > span.start]

    def from_step(self, start: int):
        import tensorflow as tf

        epoch, skip = divmod(start, self.steps_per_epoch)
        epochs = tf.data.Dataset.range(epoch, np.iinfo(np.int64).max)
        # The batch is formed of all records and cut afterwards, so that it is the same on any number of processes.
        return epochs.flat_map(_plain(self._epoch)).skip(skip).map(_plain(self._own_rows))

    def _epoch(self, epoch):
        import tensorflow as tf

        count = len(self.files)

        def one_file(path, first, end):
            # A file that is cut or damaged ends early, and one that cannot be opened at once: empty records stand for
            # those that it lacks. It is looked at just before, because ignore_errors() would try to open it for ever.
            there = tf.data.Dataset.from_tensors(path).filter(
                _plain(lambda path: _shaped(tf.numpy_function(_can_be_opened, [path], tf.bool), []))
            )
            records = there.flat_map(tf.data.TFRecordDataset).ignore_errors()
            return tf.data.Dataset.zip(tf.data.Dataset.range(first, end), records.concatenate(_endless("")))

        order = tf.numpy_function(lambda e: permutation(count, self.seed, int(e)), [epoch], tf.int64, stateful=False)
        order = _shaped(order, [count])
        columns = [np.array(column) for column in zip(*self.files, strict=True)]
        files = tf.data.Dataset.from_tensor_slices(tuple(tf.gather(column, order) for column in columns))
        records = files.interleave(one_file, cycle_length=16, num_parallel_calls=16, deterministic=True)
        records = records.filter(lambda number, _: (number >= self.span.start) & (number < self.span.stop))
        records = records.shuffle(self.window, seed=self.seed * 1_000_003 + epoch, reshuffle_each_iteration=False)
        return records.batch(self.batch_size, drop_remainder=True).take(self.steps_per_epoch)

    def _own_rows(self, numbers, records):
        import tensorflow as tf

        image, label = self.source.parse_in_graph(records[self.rows])
        return {"image": image, "label": label, "id": tf.cast(numbers[self.rows], tf.int64)}


def _can_be_opened(path: bytes) -> bool:
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            file.read(1)
        return True
    except tf.errors.OpError:
        return False


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """int64 (count,): the order of an epoch. From the raw bits of Philox, which NumPy promises never to change."""
    bits = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(count)
    return np.argsort(bits, kind="stable")


# Decoding ------------------------------------------------------------------------------------------------------------


def _decoded(records, start: int, canvas: int, channels: int, broken: Broken) -> Iterator[dict[str, np.ndarray]]:
    """Decodes in parallel and in order. Batches have "broken", bool (b,): images that are one black pixel instead."""
    tf = tensorflow()

    def black():
        return tf.zeros([1, 1, channels], tf.uint8), tf.ones([2], tf.int32)

    def decode(record):
        """An empty record is black: there was nothing to read, or it is known not to decode."""
        empty = tf.equal(record["image"], "")
        image, size = tf.cond(empty, black, lambda: fit(record["image"], canvas, channels))
        number, label = tf.cast(record["id"], tf.int32), tf.where(empty, -1, record["label"])
        return {"image": image, "size": size, "label": label, "id": number, "broken": empty}

    def decode_or_black(record):
        """A data set of one: the image, or where decoding fails what comes next, the black one."""
        image = tf.data.Dataset.from_tensors(record).map(_plain(decode)).ignore_errors()
        empty = tf.data.Dataset.from_tensors(record | {"image": ""}).map(_plain(decode))
        return image.concatenate(empty).take(1)

    rows, threads = records.rows.stop - records.rows.start, cores()
    shapes = {"image": [canvas, canvas, channels], "size": [2], "label": [], "id": [], "broken": []}

    def canvases(batch):
        """A data set of one batch. To look after each image by itself costs 0.15 ms an image, so it comes second, where
        one fails; the next epoch knows which."""
        known = tf.numpy_function(lambda ids: broken.known(records.span, ids), [batch["id"]], tf.bool)
        batch |= {"image": tf.where(_shaped(known, [None]), "", batch["image"])}
        encoded = tf.data.Dataset.from_tensor_slices(batch)
        at_once = encoded.map(_plain(decode), num_parallel_calls=threads)
        one_by_one = encoded.interleave(_plain(decode_or_black), cycle_length=threads, num_parallel_calls=threads)
        # The batch is the canvas: padding each image first would write every pixel once more (0.3 of 1.7 ms an image).
        at_once, one_by_one = (images.padded_batch(rows, shapes) for images in (at_once, one_by_one))
        # After an error comes a batch of what is left.
        whole = at_once.ignore_errors().filter(_plain(lambda found: tf.size(found["id"]) == tf.size(batch["id"])))
        return whole.concatenate(one_by_one).take(1)

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False  # it would widen buffers of whole canvases until the memory is full
    batches = records.from_step(start).interleave(_plain(canvases), cycle_length=2, num_parallel_calls=2)
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
    by_pillow = base.try_decode(data, channels)
    if isinstance(by_pillow, Exception):
        return by_pillow
    try:
        fit(data, canvas, channels)
    except Exception as error:  # TensorFlow's, or through it Pillow's, as they come
        reason = str(getattr(error, "message", error))
        return reason.partition("\n")[0].split("} ")[-1].partition(" [Op:")[0]
    return "its file is damaged before it"


def _endless(value):
    import tensorflow as tf

    return tf.data.Dataset.from_tensors(value).repeat()


def fit(data, canvas: int, channels: int = 3):
    """Encoded image, a string tensor -> (uint8 (h, w, channels), no side over `canvas`; int32 (2,): h and w)."""
    import tensorflow as tf

    is_png = tf.strings.substr(data, 0, 4) == b"\x89PNG"
    image, size = tf.cond(
        tf.io.is_jpeg(data),
        lambda: _decode_jpeg(data, canvas, channels),
        lambda: tf.cond(is_png, lambda: _decode_png(data, channels), lambda: _decode_other(data, channels)),
    )
    longest = tf.reduce_max(size)
    size = tf.cond(
        longest > canvas,
        lambda: tf.maximum(1, tf.cast(tf.round(tf.cast(size, tf.float64) * (canvas / longest)), tf.int32)),
        lambda: size,
    )
    image = tf.cond(tf.reduce_all(tf.shape(image)[:2] == size), lambda: image, lambda: _shrink(image, size))
    return _shaped(image, [None, None, channels]), _shaped(size, [2])


def _decode_jpeg(data, canvas: int, channels: int):
    """Image and its full size. Decodes at 1/2, 1/4 or 1/8 of the size (fewer coefficients, so faster) where that still
    covers the canvas; grayscale and CMYK become RGB."""
    import tensorflow as tf

    size = tf.io.extract_jpeg_shape(data)[:2]
    index = tf.reduce_sum(tf.cast(tf.reduce_max(size) >= [2 * canvas, 4 * canvas, 8 * canvas], tf.int32))

    def decoder(ratio):
        # The accurate transform costs nothing measurable, and gives Pillow's pixels to the bit.
        return lambda: tf.io.decode_jpeg(data, channels=channels, ratio=ratio, dct_method="INTEGER_ACCURATE")

    return _shaped(tf.switch_case(index, [decoder(ratio) for ratio in (1, 2, 4, 8)]), [None, None, channels]), size


def _decode_png(data, channels: int):
    import tensorflow as tf

    # Colour to one channel by Pillow's weights, as on the array path; TensorFlow's decoder has others.
    image = tf.io.decode_png(data, channels=3) if channels == 3 else _pillow(data, channels)
    return _shaped(image, [None, None, channels]), tf.shape(image)[:2]


def _decode_other(data, channels: int):
    import tensorflow as tf

    image = _pillow(data, channels)
    return image, tf.shape(image)[:2]


def _pillow(data, channels: int):
    """Whatever else Pillow reads: WebP, TIFF, GIF, BMP, PPM ..."""
    import tensorflow as tf

    def pixels(data):
        image = base.try_decode(data, channels)
        return np.zeros((0, 0, channels), np.uint8) if isinstance(image, Exception) else image

    image = tf.numpy_function(pixels, [data], tf.uint8, stateful=False)
    # Raised here: TensorFlow prints the traceback of an exception in Python.
    with tf.control_dependencies([tf.debugging.assert_greater(tf.size(image), 0, "Pillow cannot read it")]):
        return _shaped(tf.identity(image), [None, None, channels])


def _shrink(image, size):
    import tensorflow as tf

    # Means over areas: no aliasing, and 1 ms an image where the antialiased bicubic of TensorFlow takes 6.
    return tf.cast(tf.round(tf.image.resize(image, size, method="area")), tf.uint8)


def _plain(function):
    """Traced as it stands. AutoGraph finds nothing to rewrite here, and failing, prints the environment."""
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


def _shaped(tensor, shape):
    tensor.set_shape(shape)  # the graph cannot know it: a Python function or a decoder made it
    return tensor
