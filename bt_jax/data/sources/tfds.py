"""Data sets that TFDS has prepared, read from their files in sequence, or in any order by an index of the records.

TensorFlow is imported when a data set is opened, not with this module. Nothing is downloaded.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np

from bt_jax import storage
from bt_jax.data.sources.base import Source
from bt_jax.messages import UserError, progress

UPRIGHT = "bt_jax_upright"  # in the metadata that `tfrecord_shards` writes: `Source.upright`


class TfdsSource(Source):
    """A data set that TFDS has prepared in a folder.

    Its files are enough: reading needs neither the network nor the code that made it. So `cifar10` and a user's own
    data set (`tfds new`) are read in the same way.
    """

    kind = "tfds"

    def __init__(self, name: str, data_dir: str | os.PathLike | None = None):
        self.name = name
        folder = _tfds_folder(name, data_dir)
        self._tf, tfds = tensorflow(), tensorflow_datasets()
        try:
            self._builder = tfds.builder_from_directory(folder)
            info = self._builder.info
            self._files = {split: [str(f) for f in info.splits[split].filepaths] for split in info.splits}
            self._shards = {split: list(info.splits[split].shard_lengths) for split in info.splits}
        except Exception as error:  # json, protobuf, key and file errors, depending on the version of TFDS
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{folder} is not a complete TFDS data set ({reason})", "Prepare it again with `tfds build`."
            ) from None
        self.splits = {split: sum(lengths) for split, lengths in self._shards.items()}
        self._image, self._label = _feature_keys(tfds, info, name)
        self._targets = {} if self._label else _target_keys(tfds, info)
        if self._label or self._targets:
            classes = info.features[self._label] if self._label else info.features[next(iter(self._targets))].feature
            self.num_classes, self.class_names = classes.num_classes, classes.names
        if info.file_format.value != "tfrecord":
            raise UserError(
                f"{folder} is stored as {info.file_format.value}, but bt_jax reads tfrecord only",
                "Prepare it again with `tfds build --file_format=tfrecord`.",
            )
        self.upright = bool((info.metadata or {}).get(UPRIGHT))
        self._version = f"{info.name}:{info.version}"
        self._sizes = {split: int(info.splits[split].num_bytes or 0) for split in info.splits}
        self._local = "://" not in str(folder)
        self._index = {}

    def tf_dataset(self, split: str):
        """tf.data of {"image": encoded bytes, "label": int32, -1 without a label, "id": int64}, in the order of ids."""
        import tensorflow_datasets as tfds

        tf, span = self._tf, self.span(split)
        records = self._builder.as_dataset(
            split=f"{span.base}[{span.start}:{span.stop}]",
            shuffle_files=False,
            decoders={self._image: tfds.decode.SkipDecoding()},
            # One file at a time: interleaving would change the order of records, and an id is a position.
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )

        def tidy(number, record):
            label = tf.cast(record[self._label], tf.int32) if self._label else tf.constant(-1, tf.int32)
            return {"image": record[self._image], "label": label, "id": number}

        return records.enumerate(span.start).map(tidy, num_parallel_calls=1, deterministic=True)

    def encoded(self, split):
        if self._local:
            yield from super().encoded(split)
            return
        span, read = self.span(split), 0
        try:
            for batch in self.tf_dataset(split).batch(256).as_numpy_iterator():
                for data, label in zip(batch["image"], batch["label"], strict=True):
                    yield data, None if label < 0 else int(label)
                read += len(batch["image"])
        except self._tf.errors.OpError as error:
            raise self._damaged(split, span.start + read, error) from None
        self._check_count(split, read, span.stop - span.start)

    def _damaged(self, split: str, number: int, error) -> UserError:
        return UserError(
            f"{self.name}, split {split!r}, is damaged after id {number} ({short_reason(error)})",
            "Prepare it again with `tfds build`.",
        )

    def _check_count(self, split: str, count: int, expected: int) -> None:
        if count != expected:
            raise UserError(
                f"{self.name}, split {split!r}, holds {count} records, but its description counts {expected}",
                "Prepare it again with `tfds build`.",
            )

    def files(self, base: str) -> list[tuple[str, int]]:
        """(path, id of the first record) of each non-empty TFRecord file of a split."""
        firsts = np.cumsum([0, *self._shards[base]])
        return [(f, int(i)) for f, i, n in zip(self._files[base], firsts, self._shards[base], strict=False) if n]

    def digest(self, base):
        """The version, and a hash of the description of a split's files."""
        files = hashlib.sha256(repr((self._shards[base], self._sizes[base])).encode()).hexdigest()
        return f"{self._version}-{files[:16]}"

    def random_access(self, base):
        return self._local

    def labelled(self, base):
        return self._label is not None

    def _forget_labels(self):
        self._label, self._targets = None, {}

    def targets(self, base):
        if not self._targets:
            return None
        count = self.splits[base]
        records = self._records(base, range(count)) if self._local else self._in_sequence(base)
        records = progress(records, f"reading the targets of {base}", count)
        rows = [self._parse_targets(record, base, number) for number, record in enumerate(records)]
        self._check_count(base, len(rows), count)
        return np.array(rows, np.int8)

    def _parse_targets(self, record: bytes, base: str, number: int) -> np.ndarray:
        """One serialized tf.train.Example -> int8 (num_classes,), see `targets`; does not decode the image."""
        row = np.full(self.num_classes, -1, np.int8)
        try:
            features = self._tf.train.Example.FromString(record).features.feature
            if self._image not in features:  # a record may lack an empty list of classes, but not its image
                raise KeyError(self._image)
            for key, value in self._targets.items():
                classes = np.array(features[key].int64_list.value, np.int64)
                if (classes < 0).any():
                    raise IndexError(f"class {classes.min()}")
                row[classes] = value
            return row
        except Exception as error:  # DecodeError of the installed protobuf, or one of the errors above
            raise self._damaged_record(base, number, error) from None

    def _in_sequence(self, base: str) -> Iterator[bytes]:
        """The serialized records of a split in the order of ids, read by TensorFlow, which also reads gs://."""
        read = 0
        try:
            for path, _ in self.files(base):
                for record in self._tf.data.TFRecordDataset(path).as_numpy_iterator():
                    yield record
                    read += 1
        except self._tf.errors.OpError as error:
            raise self._damaged(base, read, error) from None

    def read(self, base, ids):
        records = self._records(base, ids)
        return [self._parse(record, base, i) for i, record in zip(ids, records, strict=True)]

    def _records(self, base: str, ids: Iterable[int]) -> Iterator[bytes]:
        """The serialized records of these ids, in the given order, by the index."""
        if base not in self._index:
            try:
                self._index[base] = _index_records(self, base)
            except UserError as error:  # stored, because making the index would fail again for every record
                self._index[base] = error
        if isinstance(self._index[base], UserError):
            raise self._index[base]
        paths, numbers, offsets, lengths = self._index[base]
        return (_read_at(paths[numbers[i]], int(offsets[i]), int(lengths[i])) for i in ids)

    def _parse(self, record: bytes, base: str, number: int) -> tuple[bytes, int | None]:
        """One serialized tf.train.Example -> (encoded image, label or None)."""
        try:
            features = self._tf.train.Example.FromString(record).features.feature
            label = int(features[self._label].int64_list.value[0]) if self._label else -1
            return features[self._image].bytes_list.value[0], None if label < 0 else label
        except Exception as error:  # DecodeError of the installed protobuf, IndexError for a missing feature
            raise self._damaged_record(base, number, error) from None

    def _damaged_record(self, base: str, number: int, error: Exception) -> UserError:
        return UserError(
            f"{self.name}, split {base!r}, id {number}: the record is damaged ({type(error).__name__})",
            "Prepare it again with `tfds build`.",
        )

    def parse_in_graph(self, records):
        """Serialized tf.train.Examples (b,) -> (encoded images (b,) string, labels (b,) int32, -1 without a label)."""
        tf = self._tf
        # A missing record is an empty one, which has no image to decode.
        wanted = {self._image: tf.io.FixedLenFeature([], tf.string, default_value="")}
        if self._label:
            wanted[self._label] = tf.io.FixedLenFeature([], tf.int64, default_value=-1)
        parsed = tf.io.parse_example(records, wanted)
        images = parsed[self._image]
        labels = tf.cast(parsed[self._label], tf.int32) if self._label else tf.fill(tf.shape(images), -1)
        return images, labels


def tensorflow():
    """Imports TensorFlow for reading: without messages, and on the host alone to keep accelerator memory free."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused for reading, and it prints a message on stderr
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            f"TensorFlow cannot be imported ({error})",
            "Install it (pip install tensorflow tensorflow-datasets), or use a cache file.",
        ) from None
    for kind in ("GPU", "TPU"):
        with contextlib.suppress(RuntimeError, ValueError):  # too late if the caller has already used TensorFlow
            tf.config.set_visible_devices([], kind)
    return tf


def short_reason(error: Exception) -> str:
    """The first line of an error of TensorFlow, without the names of its operations."""
    return str(getattr(error, "message", error)).partition("\n")[0].split("} ")[-1].partition(" [Op:")[0]


def tensorflow_datasets():
    """Imports TFDS; UserError with the install command if that fails."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"The package tensorflow_datasets cannot be imported ({error})",
            "Install it (pip install tensorflow-datasets), or use a cache file.",
        ) from None
    return tfds


def _tfds_folder(name: str, data_dir: str | os.PathLike | None):
    """The folder DATA_DIR/NAME[/CONFIG]/VERSION, local or gs://; the newest version if the name has none."""
    match = re.fullmatch(r"([a-z]\w*)(/[\w.-]+)?(?::(\d+\.\d+\.\d+))?", name)
    if not match:
        raise UserError(
            f"{name!r} is not a data set", 'Write it as "patterns", "cifar10", "cifar10:3.0.2" or "NAME/CONFIG".'
        )
    root = str(data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
    if "://" in root:
        tensorflow()
        from etils import epath

        base = epath.Path(root)
    else:
        base = storage.local_path(root)
    folder = base / name.split(":")[0]
    versions = _versions(folder)
    wanted = [v for v in versions if match[3] in (None, v.name)]
    if not wanted:
        present = (
            f"it has {', '.join(v.name for v in versions)}" if versions else "there is no such folder or it is empty"
        )
        fix = f"Replace {root} by" if data_dir else "Set TFDS_DATA_DIR to"
        build = f"`tfds build {name.split(':')[0]} --data_dir={root}`"
        needs = "" if importlib.util.find_spec("tensorflow") else ", and reading needs the extra tfds, which is missing"
        raise UserError(
            f"Data set {name!r} is not in {folder} ({present}){needs}",
            f"{fix} the folder that has it, or make it with {build} (of the package"
            " tensorflow-datasets); bt_jax downloads nothing.",
        )
    return wanted[-1]


def _versions(folder) -> list:
    """Folders such as 3.0.2 that hold a data set, oldest first."""
    try:
        versions = [
            f for f in folder.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", f.name) and (f / "dataset_info.json").exists()
        ]
    except OSError:
        return []
    return sorted(versions, key=lambda f: tuple(map(int, f.name.split("."))))


def _feature_keys(tfds, info, name: str) -> tuple[str, str | None]:
    """Names of the image and of the label among the features of a data set."""
    images = [key for key, feature in info.features.items() if isinstance(feature, tfds.features.Image)]
    classes = [key for key, feature in info.features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if not images:
        raise UserError(
            f"{name} has no image among its features ({', '.join(info.features)})", "Choose a data set of images."
        )
    image = "image" if "image" in images else images[0]
    label = "label" if "label" in classes else next(iter(classes), None)
    return image, label


def _target_keys(tfds, info) -> dict[str, int]:
    """{class list: target of its classes} of a multi-label data set; targets are 1 present, 0 present but difficult.

    A later list overrides an earlier one. TFDS writes VOC (object_detection/voc.py) with the classes of all objects in
    "labels", and of those not marked difficult in "labels_no_difficult". Other data sets have one list, "labels" or the
    first.
    """
    lists = [
        key
        for key, feature in info.features.items()
        if isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.ClassLabel)
    ]
    if {"labels", "labels_no_difficult"} <= set(lists):
        return {"labels": 0, "labels_no_difficult": 1}
    first = "labels" if "labels" in lists else next(iter(lists), None)
    return {first: 1} if first else {}


# The index of records -----------------------------------------------------------------------------------------------


def _index_records(source: TfdsSource, base: str):
    """The position of each record of a split: (paths, file number (n,), offset int64 (n,), length int64 (n,)).

    A TFRecord file has no index, but each record starts with its length. Seeking from length to length touches one page
    per record; reading the file would touch all pages.
    """
    files = source.files(base)
    ends = [first for _, first in files[1:]] + [source.splits[base]]
    paths = [path for path, _ in files]
    with ThreadPoolExecutor(16) as pool:  # many threads, for slow disks: a waiting thread costs nothing
        tables = list(pool.map(_record_table, paths))
    for place, ((path, first), end, table) in enumerate(zip(files, ends, tables, strict=True)):
        missing = end - first - len(table)
        if missing < 0:
            raise UserError(
                f"{path} holds {len(table)} whole records, but its description counts {end - first}",
                "Prepare it again with `tfds build`.",
            )
        tables[place] = np.concatenate([table, np.full((missing, 2), -1)])  # -1: a truncated file, see `_read_at`
    numbers = np.repeat(np.arange(len(paths)), [len(table) for table in tables])
    offsets, lengths = np.concatenate(tables).T
    return paths, numbers, offsets, lengths


def _record_table(path: str) -> np.ndarray:
    """int64 (records, 2): offset and length of the payload of each whole record of a TFRecord file.

    A file that cannot be opened gives no rows.
    """
    rows, position = [], 0
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while position + 12 <= size:
            length = int.from_bytes(os.pread(file.fileno(), 8, position), "little")
            if position + 12 + length + 4 > size:
                break
            rows.append((position + 12, length))
            position += 12 + length + 4
    return np.array(rows, np.int64).reshape(-1, 2)


def _read_at(path: str, offset: int, length: int) -> bytes:
    if offset < 0 and os.access(path, os.R_OK):
        raise UserError(f"{path} ends before this record", "Prepare it again with `tfds build`.")
    # The file is opened for each record: 1,024 open shards would exceed the usual limit on open files.
    try:
        with open(path, "rb", buffering=0) as file:
            content = os.pread(file.fileno(), length + 4, offset)
    except OSError as error:
        raise UserError(
            f"Cannot read {path}: {error.strerror}", "Restore the file or prepare the data set again."
        ) from None
    record, stored = content[:length], int.from_bytes(content[length:], "little")
    if _masked(google_crc32c.value(record)) != stored:
        raise UserError(
            f"{path} is damaged in this record: its checksum differs", "Prepare it again with `tfds build`."
        )
    return record


def _masked(crc: int) -> int:
    """The checksum of a TFRecord (tensorflow/core/lib/hash/crc32c.h): rotated by 15 bits, plus a constant."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
