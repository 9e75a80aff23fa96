"""Where images come from: {image, label or none, id}, by name or from a cache file, whatever they are used for.

A split is named as TFDS names it ("train", "test", "validation") and may be cut: "train[:90%]", "train[45000:]". The id
of an image is its position in the WHOLE split, so a cut split keeps the ids, and with them the augmentations, of the
whole one. Encoded images become arrays through one decoder (Pillow), so the same data set read through TFDS and from a
cache file gives the same pixels. Nothing here ever downloads. TensorFlow is imported only for a TFDS data set.
"""

import io
import os
import re
import struct
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bt_jax.errors import UserError

NPZ_FORMAT = 1


class Arrays(NamedTuple):
    """A whole split in memory: images uint8 (n, h, w, c); labels int32 (n,), or None where there are none."""

    images: np.ndarray
    labels: np.ndarray | None


class Span(NamedTuple):
    """The records [start, stop) of the split `base`; positions are ids."""

    base: str
    start: int
    stop: int


def open_source(name: str | None, *, data_dir: str | os.PathLike | None = None, npz: str | os.PathLike | None = None):
    """Opens a data set for reading; reads no image yet.

    Args:
      name: "patterns" (embedded in the package), or a TFDS name: "cifar10", "cifar10:3.0.2", "imagenet2012". With `npz`
        it may be None; otherwise it must be the name that the file carries.
      data_dir: folder of TFDS data sets; $TFDS_DATA_DIR, else ~/tensorflow_datasets, where None.
      npz: a cache file of `python -m bt_jax.prepare`; needs no TensorFlow.

    Raises:
      UserError: unknown name, missing folder, damaged file.
    """
    if npz is not None:
        source = NpzSource(npz)
        if name is not None and name.split(":")[0] != source.name.split(":")[0]:
            raise UserError(
                f"{npz} holds {source.name!r}, not {name!r}", "Name the file of that data set, or drop the name"
            )
        return source
    if not name:
        raise UserError("no data set is named", 'Give a name ("patterns", "cifar10", "imagenet2012") or a cache file')
    return PatternsSource() if name == "patterns" else TfdsSource(name, data_dir)


class Source:
    """What every data set offers.

    Attributes:
      name: str.
      splits: dict split -> number of images.
      num_classes: int, 0 where images carry no label.
      class_names: list of str, empty where unknown.
    """

    name: str
    splits: dict[str, int]
    num_classes: int = 0
    class_names: Sequence[str] = ()

    def span(self, split: str) -> Span:
        """Resolves "train", "train[:90%]", "train[45000:]", "train[-10%:]". UserError if there is no such split."""
        match = re.fullmatch(r"\s*([\w.-]+)\s*(?:\[\s*(-?[\d_]+%?)?\s*:\s*(-?[\d_]+%?)?\s*\])?\s*", split)
        if not match:
            raise UserError(
                f"split {split!r} is not understood", 'Write it as "train", "train[:90%]" or "train[45000:]"'
            )
        base, start, stop = match.groups()
        if base not in self.splits:
            raise UserError(f"{self.name} has no split {base!r}", f"It has: {', '.join(sorted(self.splits))}")
        count = self.splits[base]
        span = Span(base, _boundary(start or "0", count), _boundary(stop or str(count), count))
        if span.start >= span.stop:
            raise UserError(f"split {split!r} of {self.name} is empty: {base!r} has {count} images", "Widen the slice")
        return span

    def encoded(self, split: str) -> Iterator[tuple[bytes, int | None]]:
        """Yields (encoded image, label or None) in the order of ids."""
        span = self.span(split)
        for first in range(span.start, span.stop, 1024):
            yield from self.read(span.base, range(first, min(first + 1024, span.stop)))

    def random_access(self, base: str) -> bool:
        """Whether `read` is cheap in any order."""
        return True

    def read(self, base: str, ids: Iterable[int]) -> list[tuple[bytes, int | None]]:
        """(encoded image, label or None) of these ids of the whole split `base`, in the order asked. Thread-safe."""
        raise NotImplementedError

    def arrays(self, split: str) -> Arrays:
        """Decodes a whole split into memory. UserError for an unreadable image, or for several sizes."""
        span = self.span(split)
        images, labels = None, np.zeros(span.stop - span.start, np.int32)
        for position, (image, label) in enumerate(self._decoded(span, split)):
            if images is None:
                images = np.empty((len(labels), *image.shape), np.uint8)
            if image.shape != images.shape[1:]:
                (h, w, _), (h0, w0, _) = image.shape, images.shape[1:]
                raise UserError(
                    f"the images of {self.name}, split {split!r}, differ in size (id {span.start} is {w0}x{h0}, "
                    f"id {span.start + position} is {w}x{h}), so they do not fit one array",
                    "Stream this data set (data.pipeline) instead of holding it on the device",
                )
            images[position] = image
            labels[position] = -1 if label is None else label
        return Arrays(images, labels if self.num_classes else None)

    def _decoded(self, span: Span, split: str) -> Iterator[tuple[np.ndarray, int | None]]:
        """Decodes a chunk at a time, so that a data set that does not fit one array fails before it is all read."""
        records, first = self.encoded(split), span.start
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while chunk := list(islice(records, 1024)):
                # Threads pass the interpreter lock around: for 32x32 images that costs more (93 us) than decoding (57
                # us).
                large = sum(len(data) for data, _ in chunk) > 8192 * len(chunk)
                for offset, result in enumerate((pool.map if large else map)(try_decode, [data for data, _ in chunk])):
                    if isinstance(result, Exception):
                        raise broken_image(self, split, first + offset, result)
                    yield result, chunk[offset][1]
                first += len(chunk)


def decode(data: bytes) -> np.ndarray:
    """Encoded image -> uint8 (h, w, 3): the one decoder of the array path."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def try_decode(data: bytes) -> np.ndarray | Exception:
    """As `decode`, but hands an exception back, so that a pool of threads can go on."""
    try:
        return decode(data)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, its own ...
        return error


def broken_image(source: Source, split: str, number: int, reason: object) -> UserError:
    """The error for an image that cannot be decoded: names the data set, the split and the id."""
    reason = str(reason).partition("\n")[0].split("<_io")[0].strip()
    return UserError(
        f"{source.name}, split {split!r}, id {number}: the image cannot be decoded ({reason})",
        "Restore that file from its origin; `python -m bt_jax.prepare` lists every unreadable image",
    )


def _boundary(text: str, count: int) -> int:
    """One end of a slice, as a position in [0, count]; percents round as TFDS rounds them."""
    number = int(text.rstrip("%"))
    if text.endswith("%"):
        if abs(number) > 100:
            raise UserError(f"{text} is more than all of a split", "Use percents from -100% to 100%")
        number = round(number * count / 100)
    return min(max(number + count if text.startswith("-") else number, 0), count)


# Embedded and cached data sets ---------------------------------------------------------------------------------------


class PatternsSource(Source):
    """The data set inside the package: no file, no network."""

    def __init__(self):
        from bt_jax.data import patterns

        self.name = "patterns"
        self._arrays = {split: patterns.load(split) for split in ("train", "test")}
        self.splits = {split: len(images) for split, (images, _) in self._arrays.items()}
        self.class_names = list(patterns.CLASSES)
        self.num_classes = len(self.class_names)

    def read(self, base, ids):
        images, labels = self._arrays[base]
        return [(_png(images[i]), int(labels[i])) for i in ids]

    def arrays(self, split):
        span = self.span(split)
        images, labels = self._arrays[span.base]
        return Arrays(images[span.start : span.stop], labels[span.start : span.stop].astype(np.int32))


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class NpzSource(Source):
    """A cache file written by `write_npz`: for each split S the arrays `S/bytes` uint8 (all encoded images, end to
    end),
    `S/offsets` int64 (n + 1,) and `S/labels` int32 (n,) unless unlabelled; besides `name`, `class_names`, `format`.
    No pickled objects, so that opening a stranger's file runs none of its code. Held in memory whole.
    """

    def __init__(self, path: str | os.PathLike):
        if not Path(path).is_file():
            raise UserError(
                f"there is no cache file {path}", f"Write it: python -m bt_jax.prepare --data=NAME --npz={path}"
            )
        try:
            with np.load(path, allow_pickle=False) as file:
                self._read_header(file)
                self._data = {split: self._read_split(file, split) for split in self._names}
        except (
            OSError,
            ValueError,
            KeyError,
            EOFError,
            TypeError,
            IndexError,
            zipfile.BadZipFile,
            struct.error,
        ) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{path} is not a whole cache file of bt_jax ({reason})", "Write it again with python -m bt_jax.prepare"
            ) from None
        self.splits = {split: len(offsets) - 1 for split, (_, offsets, _) in self._data.items()}
        labelled = [labels for _, _, labels in self._data.values() if labels is not None and len(labels)]
        self.num_classes = (
            max([len(self.class_names), *(1 + int(labels.max()) for labels in labelled)]) if labelled else 0
        )

    def _read_header(self, file):
        if int(file["format"]) != NPZ_FORMAT:
            raise ValueError(f"format {int(file['format'])}, this version reads {NPZ_FORMAT}")
        self.name = str(file["name"])
        self.class_names = [str(name) for name in file["class_names"]]
        self._names = [key.removesuffix("/bytes") for key in file.files if key.endswith("/bytes")]

    @staticmethod
    def _read_split(file, split: str) -> tuple[memoryview, np.ndarray, np.ndarray | None]:
        data, offsets = file[f"{split}/bytes"], file[f"{split}/offsets"]
        labels = file[f"{split}/labels"] if f"{split}/labels" in file.files else None
        if (
            data.dtype != np.uint8
            or data.ndim != 1
            or offsets.dtype != np.int64
            or offsets.ndim != 1
            or not len(offsets)
        ):
            raise ValueError(f"{split}/bytes or {split}/offsets has another form")
        if offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
            raise ValueError(f"{split}/offsets does not fit {split}/bytes")
        if labels is not None and (
            labels.dtype != np.int32 or labels.shape != (len(offsets) - 1,) or (labels < 0).any()
        ):
            raise ValueError(f"{split}/labels has another form")
        return memoryview(data), offsets, labels

    def read(self, base, ids):
        data, offsets, labels = self._data[base]
        return [
            (bytes(data[offsets[i] : offsets[i + 1]]), None if labels is None else int(labels[i]))
            for i in map(int, ids)
        ]


def write_npz(source: Source, path: str | os.PathLike, splits: Sequence[str]) -> None:
    """Writes whole splits of `source` as a cache file, encoded as they are; the file appears whole or not at all.

    Raises:
      UserError: a split is unknown or cut (its ids would no longer be positions in the whole), or the file cannot be
      written.
    """
    contents = {
        "format": np.int64(NPZ_FORMAT),
        "name": np.array(source.name),
        "class_names": np.array(source.class_names, "U"),
    }
    for split in splits:
        if split not in source.splits:
            raise UserError(
                f"{source.name} has no split {split!r}", f"Name whole splits: {', '.join(sorted(source.splits))}"
            )
        encoded, labels = [], []
        for data, label in progress(source.encoded(split), f"reading {split}", source.splits[split]):
            encoded.append(data)
            labels.append(label)
        contents[f"{split}/bytes"] = np.frombuffer(b"".join(encoded), np.uint8)
        contents[f"{split}/offsets"] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        if source.num_classes:
            contents[f"{split}/labels"] = np.array(labels, np.int32)
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            np.savez(file, **contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}", "Choose a folder with room that you may write to"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def progress(items: Iterable, what: str, total: int) -> Iterator:
    """Passes items on; on a terminal, one line on stderr says how far it is."""
    shown = sys.stderr.isatty()
    for count, item in enumerate(items, 1):
        if shown and (count % 1000 == 0 or count == total):
            print(f"\r{what}: {count}/{total}", end="\n" if count == total else "", file=sys.stderr, flush=True)
        yield item


# TFDS ----------------------------------------------------------------------------------------------------------------


class TfdsSource(Source):
    """A data set that TFDS has prepared in a folder. Read from its files alone: neither the network nor the code that
    made it is needed, so `cifar10` and a data set of one's own (`tfds new`) are the same thing here.
    """

    def __init__(self, name: str, data_dir: str | os.PathLike | None = None):
        self.name = name
        folder = _tfds_folder(name, data_dir)
        self._tf, tfds = tensorflow(), _tensorflow_datasets()
        try:
            self._builder = tfds.builder_from_directory(folder)
            info = self._builder.info
            self._files = {split: [str(f) for f in info.splits[split].filepaths] for split in info.splits}
            self._shards = {split: list(info.splits[split].shard_lengths) for split in info.splits}
        except Exception as error:  # json, protobuf, key and file errors, as the version of TFDS has it
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{folder} is not a whole TFDS data set ({reason})", "Prepare it again with `tfds build`"
            ) from None
        self.splits = {split: sum(lengths) for split, lengths in self._shards.items()}
        self._image, self._label = _feature_keys(tfds, info, name)
        if self._label:
            self.num_classes = info.features[self._label].num_classes
            self.class_names = info.features[self._label].names
        if info.file_format.value != "tfrecord":
            raise UserError(
                f"{folder} is stored as {info.file_format.value}, and only tfrecord is read here",
                "Prepare it again with `tfds build --file_format=tfrecord`",
            )
        self._local = "://" not in str(folder)
        self._index = {}

    def tf_dataset(self, split: str):
        """tf.data of {"image": encoded bytes, "label": int32, -1 where there is none, "id": int64}, by ids."""
        import tensorflow_datasets as tfds

        tf, span = self._tf, self.span(split)
        records = self._builder.as_dataset(
            split=f"{span.base}[{span.start}:{span.stop}]",
            shuffle_files=False,
            decoders={self._image: tfds.decode.SkipDecoding()},
            # One file at a time: interleaved files would put the records out of order, and an id is a position.
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )

        def tidy(number, record):
            label = tf.cast(record[self._label], tf.int32) if self._label else tf.constant(-1, tf.int32)
            return {"image": record[self._image], "label": label, "id": number}

        return records.enumerate(span.start).map(tidy, num_parallel_calls=1, deterministic=True)

    def encoded(self, split):
        span, read = self.span(split), 0
        try:
            for batch in self.tf_dataset(split).batch(256).as_numpy_iterator():
                for data, label in zip(batch["image"], batch["label"], strict=True):
                    yield data, int(label) if self._label else None
                read += len(batch["image"])
        except self._tf.errors.OpError as error:
            reason = str(error.message).partition("\n")[0].split("} ")[-1]
            raise UserError(
                f"{self.name}, split {split!r}, is damaged near id {span.start + read} ({reason})",
                "Prepare it again with `tfds build`",
            ) from None
        if read != span.stop - span.start:
            raise UserError(
                f"{self.name}, split {split!r}, holds {read} records where its description counts "
                f"{span.stop - span.start}",
                "Prepare it again with `tfds build`",
            )

    def files(self, base: str) -> list[tuple[str, int]]:
        """(path, id of the first record) of each TFRecord file of a split that holds any."""
        firsts = np.cumsum([0, *self._shards[base]])
        return [(f, int(i)) for f, i, n in zip(self._files[base], firsts, self._shards[base], strict=False) if n]

    def random_access(self, base):
        return self._local

    def read(self, base, ids):
        if base not in self._index:
            self._index[base] = _index_records(self, base)
        paths, numbers, offsets, lengths = self._index[base]
        records = (_read_at(paths[numbers[i]], int(offsets[i]), int(lengths[i])) for i in ids)
        return [self._parse(record, base, i) for i, record in zip(ids, records, strict=True)]

    def _parse(self, record: bytes, base: str, number: int) -> tuple[bytes, int | None]:
        """One serialized tf.train.Example -> (encoded image, label or None)."""
        try:
            features = self._tf.train.Example.FromString(record).features.feature
            label = int(features[self._label].int64_list.value[0]) if self._label else None
            return features[self._image].bytes_list.value[0], label
        except Exception as error:  # DecodeError of whichever protobuf is installed, IndexError for a missing feature
            raise UserError(
                f"{self.name}, split {base!r}, id {number}: the record is damaged ({type(error).__name__})",
                "Prepare it again with `tfds build`",
            ) from None

    def parse_in_graph(self, records):
        """Serialized tf.train.Examples (b,) -> (encoded images (b,) string, labels (b,) int32, -1 where there is
        none).
        """
        tf = self._tf
        wanted = {self._image: tf.io.FixedLenFeature([], tf.string)}
        if self._label:
            wanted[self._label] = tf.io.FixedLenFeature([], tf.int64)
        parsed = tf.io.parse_example(records, wanted)
        images = parsed[self._image]
        labels = tf.cast(parsed[self._label], tf.int32) if self._label else tf.fill(tf.shape(images), -1)
        return images, labels


def tensorflow():
    """Imports TensorFlow for reading: silent, and on the host alone, so that it takes no memory of an accelerator."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # nothing here computes, and it announces itself on stderr
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            f"TensorFlow cannot be imported ({error})",
            "Install it (pip install tensorflow tensorflow-datasets), or use a cache file",
        ) from None
    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except (RuntimeError, ValueError):  # the caller has used TensorFlow before: too late to hide anything
            pass
    return tf


def _tensorflow_datasets():
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"tensorflow_datasets cannot be imported ({error})",
            "Install it (pip install tensorflow-datasets), or use a cache file",
        ) from None
    return tfds


def _tfds_folder(name: str, data_dir: str | os.PathLike | None):
    """The folder DATA_DIR/NAME[/CONFIG]/VERSION; the newest version where none is named. Local or gs://."""
    match = re.fullmatch(r"([a-z]\w*)(/[\w.-]+)?(?::(\d+\.\d+\.\d+))?", name)
    if not match:
        raise UserError(
            f"{name!r} is not a data set", 'Write it as "patterns", "cifar10", "cifar10:3.0.2" or "NAME/CONFIG"'
        )
    root = str(data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
    if "://" in root:
        tensorflow()
        from etils import epath

        base = epath.Path(root)
    else:
        base = Path(root).expanduser()
    folder = base / name.split(":")[0]
    versions = _versions(folder)
    wanted = [v for v in versions if match[3] in (None, v.name)]
    if not wanted:
        found = (
            f"it has {', '.join(v.name for v in versions)}" if versions else "there is no such folder or it is empty"
        )
        cure = f"Point the data folder, now {root}, at your data (--data_dir or TFDS_DATA_DIR)"
        build = f"make the data with `tfds build {name.split(':')[0]} --data_dir={root}`"
        raise UserError(
            f"data set {name!r} is not in {folder} ({found})", f"{cure}, or {build}; nothing is downloaded by itself"
        )
    return wanted[-1]


def _versions(folder) -> list:
    """Folders such as 3.0.2 that hold a data set, oldest first."""
    try:
        found = [
            f for f in folder.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", f.name) and (f / "dataset_info.json").exists()
        ]
    except OSError:
        return []
    return sorted(found, key=lambda f: tuple(map(int, f.name.split("."))))


def _feature_keys(tfds, info, name: str) -> tuple[str, str | None]:
    """Names of the image and of the label among the features of a data set."""
    images = [key for key, feature in info.features.items() if isinstance(feature, tfds.features.Image)]
    classes = [key for key, feature in info.features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if not images:
        raise UserError(
            f"{name} has no image among its features ({', '.join(info.features)})", "Choose a data set of images"
        )
    image = "image" if "image" in images else images[0]
    label = "label" if "label" in classes else next(iter(classes), None)
    return image, label


def _index_records(source: TfdsSource, base: str):
    """Where each record of a split lies: (paths, file number (n,), offset int64 (n,), length int64 (n,)).

    A TFRecord file has no index, but each record is led by its length: hopping from length to length touches one page a
    record, where reading the file would touch them all.
    """
    files = source.files(base)
    ends = [first for _, first in files[1:]] + [source.splits[base]]
    paths = [path for path, _ in files]
    with ThreadPoolExecutor(16) as pool:  # files lie on slow disks too, and a thread that waits costs nothing
        tables = list(pool.map(_record_table, paths))
    for (path, first), end, table in zip(files, ends, tables, strict=True):
        if len(table) != end - first:
            raise UserError(
                f"{path} holds {len(table)} whole records where its description counts {end - first}",
                "Prepare it again with `tfds build`",
            )
    numbers = np.repeat(np.arange(len(paths)), [len(table) for table in tables])
    offsets, lengths = np.concatenate(tables).T
    return paths, numbers, offsets, lengths


def _record_table(path: str) -> np.ndarray:
    """int64 (records, 2): offset and length of the payload of each whole record of a TFRecord file."""
    rows, position = [], 0
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            while position + 12 <= size:
                length = int.from_bytes(os.pread(file.fileno(), 8, position), "little")
                if position + 12 + length + 4 > size:
                    break
                rows.append((position + 12, length))
                position += 12 + length + 4
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}", "Restore the file or prepare the data set again"
        ) from None
    return np.array(rows, np.int64).reshape(-1, 2)


def _read_at(path: str, offset: int, length: int) -> bytes:
    # Opened anew each time: 1,024 shards held open would meet the usual limit on open files.
    try:
        with open(path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}", "Restore the file or prepare the data set again"
        ) from None
