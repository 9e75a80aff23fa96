"""Cache files: whole splits of encoded images in one .npz file, which needs no TensorFlow."""

import contextlib
import os
import struct
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import google_crc32c
import numpy as np

from bt_jax import storage
from bt_jax.data.sources.base import Source
from bt_jax.messages import UserError, line, progress

NPZ_FORMAT = 1


class NpzSource(Source):
    """A cache file written by `write_npz`.

    For each split S the file holds the arrays `S/bytes` uint8 (all encoded images, concatenated), `S/offsets` int64
    (n + 1,) and, if labelled, `S/labels` int32 (n,); also `name`, `class_names`, `format` and `upright` (bool:
    whether images are turned by their EXIF orientation; False if absent). It has no pickled objects, so opening a
    stranger's file runs none of its code. All of it is kept in memory. An image whose bytes could not be read is empty
    and has the label -1; one that cannot be decoded keeps its bytes and its label.
    """

    kind = "npz"

    def __init__(self, path: str | os.PathLike):
        path = storage.local_path(path)
        if not path.is_file():
            raise UserError(
                f"There is no cache file {path}", f"Run bt-jax prepare --data=NAME --npz={path} to write it."
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
            raise _refusal(path, error) from None
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
        self.upright = bool(file["upright"]) if "upright" in file.files else False
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
            raise ValueError(f"{split}/bytes or {split}/offsets has another dtype or shape")
        if offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
            raise ValueError(f"{split}/offsets does not fit {split}/bytes")
        if labels is not None and (
            labels.dtype != np.int32 or labels.shape != (len(offsets) - 1,) or (labels < -1).any()
        ):
            raise ValueError(f"{split}/labels has another dtype, shape or range")
        return memoryview(data), offsets, labels

    def labelled(self, base):
        return self._data[base][2] is not None

    def labels_at_hand(self, base):
        labels = self._data[base][2]
        return np.full(self.splits[base], -1, np.int32) if labels is None else labels

    def _forget_labels(self):
        self._data = {split: (data, offsets, None) for split, (data, offsets, _) in self._data.items()}

    def labels(self, base):
        return self.labels_at_hand(base)

    def digest(self, base):
        """CRC-32C of images, offsets and labels alone: other programs may write the rest of the file differently."""
        checksums = []
        for part in filter(lambda part: part is not None, self._data[base]):
            checksum, octets = google_crc32c.Checksum(), np.frombuffer(part, np.uint8)
            for first in range(0, len(octets), storage.CHUNK):
                checksum.update(octets[first : first + storage.CHUNK].tobytes())
            checksums.append(checksum.hexdigest().decode())
        return "-".join(checksums)

    def read(self, base, ids):
        data, offsets, labels = self._data[base]
        return [
            (bytes(data[offsets[i] : offsets[i + 1]]), None if labels is None or labels[i] < 0 else int(labels[i]))
            for i in map(int, ids)
        ]


def _refusal(path: Path, error: Exception) -> UserError:
    """The error for a file that is no cache file at all, or a damaged one."""
    if foreign := _foreign(path):
        return UserError(
            f"{path} is not a cache file of bt_jax: {foreign}",
            "Name a file that bt-jax prepare --npz=FILE has written, or a folder of images with"
            " --config.data.folder=IMAGES.",
        )
    return UserError(
        f"{path} is not an intact cache file of bt_jax ({line(error)})", "Write it again with bt-jax prepare."
    )


def _foreign(path: Path) -> str:
    """Why a file is no cache file, not even a damaged one; "" if it may be one."""
    try:
        with zipfile.ZipFile(path) as archive:
            foreign = f"it has no array 'format', but {', '.join(archive.namelist()[:4])}"
            return foreign * ("format.npy" not in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        with contextlib.suppress(OSError), path.open("rb") as file:
            start = file.read(2)
            return "it is no .npz file" * (start != b"PK")
    return ""


def refuse_foreign(path: Path, name: str) -> None:
    """UserError if `write_npz` would replace a file that is no cache file, or the cache file of another data set.

    A damaged cache file may be replaced.
    """
    if not os.path.lexists(path):
        return
    fix = "Give another --npz, or delete it."
    if foreign := _foreign(path):
        raise UserError(f"{path} exists and is not a cache file of bt_jax: {foreign}", fix)
    try:
        with np.load(path, allow_pickle=False) as file:
            held = str(file["name"])
    except Exception:  # of any type: the file is damaged
        return
    if held != name:
        raise UserError(f"{path} exists and is the cache file of another data set, {held}, not of {name}", fix)


def write_npz(source: Source, path: str | os.PathLike, splits: Sequence[str]) -> None:
    """Writes whole splits of `source` as a cache file, without re-encoding; it appears complete or not at all.

    An unreadable image keeps its position and is unreadable in the cache file too.

    Raises:
      UserError: a split is unknown or a slice (its ids would not be positions in the whole split), or the file cannot
        be written.
    """
    contents = {
        "format": np.int64(NPZ_FORMAT),
        "name": np.array(source.name),
        "class_names": np.array(source.class_names, "U"),
        "upright": np.bool_(source.upright),
    }
    for split in splits:
        if split not in source.splits:
            raise UserError(
                f"{source.name} has no split {split!r}", f"Name whole splits: {', '.join(sorted(source.splits))}."
            )
        encoded, labels = [], []
        for data, label in progress(source.encoded(split), f"reading {split}", source.splits[split]):
            encoded.append(b"" if isinstance(data, UserError) else data)  # later images keep their ids
            labels.append(-1 if label is None else label)
        contents[f"{split}/bytes"] = np.frombuffer(b"".join(encoded), np.uint8)
        contents[f"{split}/offsets"] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        if source.labelled(split):
            contents[f"{split}/labels"] = np.array(labels, np.int32)
    path = storage.local_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write(path, partial(np.savez, **contents), shared=True)
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror}", "Choose a writable folder on a disk with free space."
        ) from None
