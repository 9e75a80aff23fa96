"""Readers of encoded records in training order: a permutation if the storage allows it, otherwise a window.

`from_step(step)` of each class returns a tf.data of encoded batches {"image": (b,) string, "label": (b,) int32, "id":
(b,) int64} from that step on. Earlier records are skipped before they are decoded.
"""

import threading

import numpy as np

from bt_jax.data import tf_decode
from bt_jax.data.order import permutation
from bt_jax.data.sources.base import Source, evenly_spaced
from bt_jax.data.sources.spans import Span
from bt_jax.messages import UserError

WINDOW = 8192  # records: about 0.9 GB of ImageNet JPEGs


class Permuted:
    """Reads batch k of an epoch as the k-th piece of a permutation of the split."""

    def __init__(self, source: Source, span: Span, batch_size: int, rows: slice, seed: int):
        self.source, self.span, self.batch_size = source, span, batch_size
        self.rows, self.seed = rows, seed
        self.steps_per_epoch = (span.stop - span.start) // batch_size
        self.failure = None
        self._epoch, self._order, self._lock = -1, None, threading.Lock()

    def from_step(self, start: int, stop: int = np.iinfo(np.int64).max):
        import tensorflow as tf

        steps = tf.data.Dataset.range(start, stop)
        # Two batches at a time: one waits for the disk while the other is unpacked.
        return steps.map(tf_decode.plain(self._fetch), num_parallel_calls=2, deterministic=True)

    def _fetch(self, step):
        import tensorflow as tf

        image, label, number = tf.numpy_function(self._read, [step], (tf.string, tf.int32, tf.int64), stateful=False)
        return {
            "image": tf_decode.shaped(image, [None]),
            "label": tf_decode.shaped(label, [None]),
            "id": tf_decode.shaped(number, [None]),
        }

    def read(self, step: int) -> tuple[list[bytes | UserError], np.ndarray, np.ndarray]:
        """Encoded images, with a UserError for an unreadable one; labels int32 (b,), -1 if none; ids int64 (b,)."""
        ids = self.ids(step)
        images, labels = zip(*self.source.try_read(self.span.base, ids), strict=True)
        return list(images), np.array([-1 if label is None else label for label in labels], np.int32), ids

    def _read(self, step):
        try:
            images, labels, ids = self.read(int(step))
            images = [b"" if isinstance(image, UserError) else image for image in images]
        except Exception as error:
            self.failure = error  # tf.data raises another error instead
            raise
        return np.array(images, object), labels, ids

    def ids(self, step: int) -> np.ndarray:
        """int64 (b,): the ids of this process's rows of a global batch."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        with self._lock:
            if epoch != self._epoch:
                self._epoch, self._order = epoch, permutation(self.span.stop - self.span.start, self.seed, epoch)
            order = self._order
        return self.span.start + order[batch * self.batch_size :][self.rows]


class Ordered(Permuted):
    """Reads every record once, or `limit` of them, in the order of ids; the last batch is shorter."""

    def __init__(self, source: Source, span: Span, batch_size: int, limit: int = 0):
        super().__init__(source, span, batch_size, slice(0, batch_size), seed=0)
        self._ids = span.start + evenly_spaced(span.stop - span.start, limit)
        self.steps = -(-len(self._ids) // batch_size)

    def from_step(self, start):
        if not self.source.random_access(self.span.base):
            first, stop = self.span.start + start * self.batch_size, self.span.start + len(self._ids)
            return self.source.tf_dataset(f"{self.span.base}[{first}:{stop}]").batch(self.batch_size)
        return super().from_step(start, self.steps)

    def ids(self, step):
        return self._ids[step * self.batch_size :][: self.batch_size]


class Windowed:
    """Reads the files of an epoch in a random order, each in sequence, through a shuffle buffer."""

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
        # Each process forms the global batch and then takes its rows, so that the batch is the same for any number of
        # processes.
        return epochs.flat_map(tf_decode.plain(self._epoch)).skip(skip).map(tf_decode.plain(self._own_rows))

    def _epoch(self, epoch):
        import tensorflow as tf

        count = len(self.files)

        def one_file(path, first, end):
            # Empty records replace those that a truncated, damaged or missing file lacks. The filter opens the file
            # first, because ignore_errors() would try to open it for ever.
            there = tf.data.Dataset.from_tensors(path).filter(
                tf_decode.plain(lambda path: tf_decode.shaped(tf.numpy_function(_can_be_opened, [path], tf.bool), []))
            )
            records = there.flat_map(tf.data.TFRecordDataset).ignore_errors()
            return tf.data.Dataset.zip(tf.data.Dataset.range(first, end), records.concatenate(_endless("")))

        order = tf.numpy_function(lambda e: permutation(count, self.seed, int(e)), [epoch], tf.int64, stateful=False)
        order = tf_decode.shaped(order, [count])
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


def _endless(value):
    import tensorflow as tf

    return tf.data.Dataset.from_tensors(value).repeat()
