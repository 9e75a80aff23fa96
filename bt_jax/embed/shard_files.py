"""Shards on the disk, as .npy files or as Parquet."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bt_jax import storage
from bt_jax.messages import UserError, is_disk_full


class Rows(NamedTuple):
    """The columns of a shard: id int64 (n,), file list of n str, label int32 (n,) or None, feature float32 (n, d)."""

    id: np.ndarray
    file: list[str]
    label: np.ndarray | None
    feature: np.ndarray


class Index(NamedTuple):
    """The columns of a stored shard, without its features."""

    id: np.ndarray
    file: list[str]
    labelled: bool
    shape: tuple[int, ...]


class Npy:
    """One .npy file for each column. Features come last: if their file exists, all others exist too."""

    def write(self, folder: Path, stem: str, rows: Rows) -> None:
        columns = {"ids": rows.id, "files": np.array(rows.file, "U"), "labels": rows.label, "features": rows.feature}
        for name, column in columns.items():
            if column is not None:
                storage.write(self._path(folder, name, stem), partial(np.save, arr=column, allow_pickle=False))

    def index(self, folder: Path, stem: str) -> Index:
        """Raises an error of NumPy, of any type, for a missing or damaged file."""
        ids, files, features = (np.load(self._path(folder, name, stem), "r") for name in ("ids", "files", "features"))
        labels = self._path(folder, "labels", stem)
        labelled = labels.exists()
        if (
            features.dtype != np.float32
            or files.shape != ids.shape
            or labelled
            and np.load(labels, "r").shape != ids.shape
        ):
            raise ValueError("columns do not fit")
        return Index(ids, files.tolist(), labelled, features.shape)

    def text(self, name: str) -> str:
        return name

    @staticmethod
    def _path(folder: Path, name: str, stem: str) -> Path:
        return folder / f"{name}-{stem}.npy"


class Parquet:
    """One Parquet file. Bytes of a file name that are not UTF-8 are written as \\udc80 to \\udcff."""

    def __init__(self):
        if importlib.util.find_spec("pyarrow") is None:
            raise UserError("--format=parquet needs pyarrow", "Run pip install pyarrow.")

    def write(self, folder: Path, stem: str, rows: Rows) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = pa.array(rows.feature.reshape(-1))
        columns = {"id": pa.array(rows.id), "file": pa.array([self.text(name) for name in rows.file], pa.string())}
        if rows.label is not None:
            columns["label"] = pa.array(rows.label)
        columns["feature"] = pa.FixedSizeListArray.from_arrays(flat, rows.feature.shape[1])
        storage.write(self._path(folder, stem), lambda stream: pq.write_table(pa.table(columns), stream))

    def index(self, folder: Path, stem: str) -> Index:
        """Raises an error of Arrow, of any type, for a missing or damaged file."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._path(folder, stem)) as file:
            kind, labelled = file.schema_arrow.field("feature").type, "label" in file.schema_arrow.names
            table = file.read(["id", "file"])
        return Index(table["id"].to_numpy(), table["file"].to_pylist(), labelled, (table.num_rows, kind.list_size))

    def text(self, name: str) -> str:
        return name.encode("utf-8", "backslashreplace").decode()

    @staticmethod
    def _path(folder: Path, stem: str) -> Path:
        return folder / f"embeddings-{stem}.parquet"


class WriteErrors:
    """Converts disk errors while writing into a UserError."""

    def __init__(self, what: Path):
        self._what = what

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, OSError):
            reason = "the disk is full" if is_disk_full(error) else error.strerror or str(error)
            fix = "Choose a writable folder on a disk with free space. The same command resumes."
            raise UserError(f"Cannot write {self._what}: {reason}", fix) from None
