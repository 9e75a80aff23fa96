"""Where run folders lie: on this machine, as pathlib's paths, or in a bucket, gs://BUCKET/FOLDER, as etils.epath's.

Both have the same methods, and what differs is here: in a bucket an object appears whole or not at all, but nothing can
be appended to or renamed, there are no folders, and `absolute` and `resolve` of such a path are wrong.
Buckets are reached through gcsfs, which finds the credentials as Google's own tools do; arrays of checkpoints go there
through TensorStore, from all processes at once.
"""

import base64
import contextlib
import functools
import importlib.util
import io
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import google_crc32c

from bt_jax.messages import TRY_AGAIN, UserError, line

if TYPE_CHECKING:
    AnyPath = Path  # epath's have its methods
else:
    AnyPath = os.PathLike
CHUNK = 1 << 22  # bytes read at a time
SECONDS = 30.0  # between two copies of what grows: an object takes one write a second, and each writes it anew

# Whoever reaches a bucket first, TFDS perhaps, makes the one file system that epath has in a process.
if importlib.util.find_spec("gcsfs"):
    import fsspec

    # epath would take TensorFlow where that is installed. One road is enough, and it is the one tested.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # Else gcsfs asks for a bucket's kind before every access, for as long as the account may not know it.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # Its list of what lies in a folder would not show what other processes write there.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


def path(text: str | os.PathLike) -> Path:
    """A path of this machine with `~` expanded, or of a bucket.

    Raises:
      UserError: another kind of address, one without a folder, or gcsfs is not installed.
    """
    text = re.sub("^gs:/(?=[^/])", "gs://", os.fspath(text))  # pathlib takes the second slash away
    if "://" not in text:
        return _expanded(text)
    if not re.fullmatch("gs://[a-z0-9][a-z0-9._-]+/[^/].*", text):
        raise UserError(
            f"{text} is neither a path nor gs://BUCKET/FOLDER", "Name a folder; other storage can be mounted as one."
        )
    if odd := re.search(r"[^\w./=+@,-]", text.removeprefix("gs://")):  # marks of addresses and of patterns, as # and *
        raise UserError(
            f"{text} has a {odd[0]!r} in it", "Name the folder with letters, digits and . _ - = + @ , alone."
        )
    _file_system()
    from etils import epath

    return epath.Path(text.rstrip("/"))


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether it is an address and not a path of this machine."""
    return "://" in os.fspath(path)


def absolute(path: Path) -> Path:
    """Path.absolute, which an address is already."""
    return path if in_bucket(path) else path.absolute()


def here(text: str | os.PathLike) -> Path:
    """An absolute path of this machine; UserError for an address."""
    if in_bucket(text):
        raise UserError(f"{text} is not on this machine", "Name a path here, and copy it from or to where you want it.")
    return _expanded(text).absolute()


def _expanded(text: str | os.PathLike) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~SOMEBODY, who has no home here
        raise UserError(f"{os.fspath(text)} begins with the home of nobody", "Write the whole path.") from None


def user_cache() -> Path:
    """Where this package keeps what can be made again: compiled programs, lists of files."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "bt_jax"


@functools.cache
def _file_system():
    """gcsfs's, for all threads."""
    if not importlib.util.find_spec("gcsfs"):
        raise UserError("gs:// takes gcsfs, which is not installed", "Run pip install -e '.[gcs]'.")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # its tracebacks; what failed is told in one line here
    return fsspec.filesystem("gcs", finalize_on_close=True)


# ---------------------------------------------------------------------------------------------------------------- files


def write(path: Path, content: str | bytes | Callable[[IO[bytes]], object], *, shared: bool = False) -> None:
    """Writes a file, on the disk before it has its name: readers see the whole old one or the whole new one.

    Args:
      content: text, bytes, or a function that writes to an open binary file.
      shared: several processes of this machine may write this file at the same time.
    """
    content = content.encode() if isinstance(content, str) else content
    if in_bucket(path):
        if callable(content):
            content(buffer := io.BytesIO())
            content = buffer.getvalue()
        try:
            path.write_bytes(content)
        except FileNotFoundError:
            raise UserError(f"There is no bucket for {path}", "Make it, or name another.") from None
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp" if shared else f".{path.name}.tmp")
    try:
        with partial.open("wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> bytes | None:
    """What is in a file, or None where there is none, or none that can be read here. A bucket out of reach raises."""
    try:
        return _file_system().cat_file(os.fspath(path)) if in_bucket(path) else path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        if in_bucket(path):
            raise
        return None


def to_json(content: Any, *, indent: int | None = None) -> str:
    """JSON as the standard has it: numbers that are not finite, for which it has no name, are null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path, content: dict[str, Any], *, shared: bool = False) -> None:
    """Writes a file of JSON for people to read; see `write`."""
    write(path, to_json(content, indent=2) + "\n", shared=shared)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file of JSON, or None if there is no file that can be read here.

    Raises:
      ValueError: the file is damaged, or holds no object.
    """
    if (content := read(path)) is None:
        return None
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


def is_dir(path: Path) -> bool:
    """Path.is_dir; epath's takes a bucket out of reach for an absent folder."""
    if not in_bucket(path):
        return path.is_dir()
    try:
        return _file_system().info(os.fspath(path))["type"] == "directory"
    except FileNotFoundError:
        return False


def size(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().length if in_bucket(path) else path.stat().st_size


def is_full(path: str | os.PathLike) -> bool:
    """Whether the disk on which a path lies, or would lie, has no room for a small file. A bucket has."""
    if in_bucket(path):
        return False
    place = Path(path).expanduser().absolute()
    there = next(each for each in (place, *place.parents) if each.exists())
    return shutil.disk_usage(there).free < CHUNK


def checksum(path: Path, *, sync: bool = False) -> str:
    """CRC-32C of a file of this machine, 8 hexadecimal digits.

    Args:
      sync: wait until the file is on the disk.
    """
    found = google_crc32c.Checksum()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
        if sync:
            os.fsync(file.fileno())
    return found.hexdigest().decode()


# -------------------------------------------------------------------------------------------------------------- folders


def make(folder: Path) -> None:
    """Makes a folder, and its parents; in a bucket there is nothing to be made."""
    if not in_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)


def look_at_bucket(folder: Path) -> None:
    """Raises UserError where this account cannot look at the bucket itself, as Orbax does whenever it deletes."""
    from google.api_core import exceptions
    from google.cloud import storage

    name = os.fspath(folder).removeprefix("gs://").partition("/")[0]
    try:
        storage.Client().get_bucket(name, timeout=60)
    except exceptions.NotFound:
        raise UserError(f"There is no bucket {name}", "Make it, or name another.") from None
    except exceptions.Forbidden as error:
        raise UserError(
            f"This account may not look at the bucket {name}: {line(error)}",
            "Give it roles/storage.objectUser and roles/storage.legacyBucketReader there.",
        ) from error


def files_below(folder: Path) -> list[str]:
    """The names within the folder of all files in it and in its sub-folders, sorted."""
    if in_bucket(folder):
        return sorted(_listed(folder))
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def contents(folder: Path, *, sync: bool = False) -> Callable[[str], tuple[int, Callable[[], str]] | None]:
    """contents(folder)(name) -> (bytes, its CRC-32C when called) of a file below the folder, None where it is not.

    In a bucket all of it is one request: the checksum is kept with the object, of what was stored.
    """
    if in_bucket(folder):
        found = _listed(folder)
        codes = {name: base64.b64decode(about["crc32c"]).hex() for name, about in found.items()}
        return lambda name: (found[name]["size"], lambda: codes[name]) if name in found else None

    def look(name):
        path = folder / name
        return (size(path), lambda: checksum(path, sync=sync)) if path.is_file() else None

    return look


def _listed(folder: Path) -> dict[str, dict]:
    root = os.fspath(folder).removeprefix("gs://") + "/"
    return {name.removeprefix(root): about for name, about in _file_system().find(root, detail=True).items()}


def sync(folder: Path) -> None:
    """A folder's entries, like a file's bytes, are on the disk only after this."""
    if in_bucket(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(folder: Path, to: Path) -> None:
    """Gives a folder another name on the same disk, or in the same bucket, where every object is copied."""
    if not in_bucket(folder):
        to.parent.mkdir(exist_ok=True)
        folder.rename(to)
        return
    bucket = _file_system()
    for name in files_below(folder):
        bucket.cp_file(os.fspath(folder / name), os.fspath(to / name))
    bucket.rm(os.fspath(folder), recursive=True)


class Growing:
    """A folder with files that are appended to. Those of a bucket grow in a folder of this machine and are copied.

    Attributes:
      here: the folder to write to.
    """

    def __init__(self, folder: Path, names: tuple[str, ...]):
        """`names`: files that are to be gone on with, where they are there."""
        self._folder, self._copies = folder, in_bucket(folder)
        self.here = Path(tempfile.mkdtemp(prefix="bt_jax-")) if self._copies else folder
        if not self._copies:
            return
        for name in names:
            if (content := read(folder / name)) is not None:
                (self.here / name).write_bytes(content)
        self._copied: dict[str, tuple[int, int]] = {}
        self._thread, self._copying = ThreadPoolExecutor(1, "bucket"), Future()
        self._copying.set_result(None)
        self._next = time.monotonic() + SECONDS

    def grown(self) -> None:
        """Copies in the background what has changed, where the last time is SECONDS ago."""
        if self._copies and self._copying.done() and time.monotonic() > self._next:
            if error := self._copying.exception():
                self._warn(error)
            self._copying, self._next = self._thread.submit(self._copy), time.monotonic() + SECONDS

    def sync(self) -> None:
        """Returns when everything that was written is in the bucket."""
        if self._copies:
            self._thread.submit(self._copy).result()

    def close(self) -> None:
        """Copies for the last time; where that fails it only warns, as an error that ends the run may be on its way."""
        if self._copies:
            try:
                self.sync()
                shutil.rmtree(self.here, ignore_errors=True)
            except Exception as error:  # gcsfs has no class for its errors
                self._warn(error)
                print(f"They are in {self.here}", file=sys.stderr)
            self._thread.shutdown()

    def _warn(self, error: BaseException) -> None:
        print(f"WARNING: the newest lines could not be written to {self._folder}: {line(error)}", file=sys.stderr)

    def _copy(self) -> None:
        for name in files_below(self.here):
            path = self.here / name
            now = (path.stat().st_size, path.stat().st_mtime_ns)
            if self._copied.get(name) != now:
                (self._folder / name).write_bytes(path.read_bytes())
                self._copied[name] = now


# --------------------------------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def reached() -> Iterator[None]:
    """Turns the errors of a bucket that could not be reached into one line; also a decorator."""
    try:
        yield
    except Exception as error:
        if found := explained(error, "The bucket cannot be reached"):
            raise found from error
        raise


def explained(error: BaseException, what: str) -> UserError | None:
    """Of an error that came from a bucket, or the way to it, what to do about it; of others None."""
    # By class they are everybody's, OSError and such; TensorStore's are ValueErrors.
    frames = traceback.walk_tb(error.__traceback__)
    roads = ("fsspec.", "gcsfs.", "google.")
    through = any(frame.f_globals.get("__name__", "").startswith(roads) for frame, _ in frames)
    if isinstance(error, (FileNotFoundError, UserError)) or not (
        through or re.search("Error (opening|reading|writing) .*gs://", str(error))
    ):
        return None
    told = f"{type(error).__name__} {error}"
    refused = any(word in told for word in ("Credentials", "Forbidden", "PERMISSION_DENIED", "UNAUTHENTICATED"))
    refused = refused or getattr(error, "code", None) in (401, 403)
    cure = "Give this account the right to it, or log in: gcloud auth application-default login."
    return UserError(
        f"{what}: {line(error)}",
        cure if refused else "Give the same command again once the network is back.",
        status=2 if refused else TRY_AGAIN,
    )
