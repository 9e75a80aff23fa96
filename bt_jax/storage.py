"""Files of run folders: on this machine (pathlib paths) or in a bucket, gs://BUCKET/FOLDER (etils.epath paths).

Both have the same methods; this module hides the differences. In a bucket an object appears whole or not at all. It
cannot be appended to or renamed, there are no folders, and `absolute` and `resolve` of such a path are wrong.
gcsfs accesses buckets, with the credentials of Google's own tools. TensorStore writes arrays of checkpoints, from all
processes at once.
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
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import google_crc32c

from bt_jax.messages import TRY_AGAIN, UserError, line
from bt_jax.terminal import interrupts

if TYPE_CHECKING:
    AnyPath = Path  # the paths of epath have its methods
else:
    AnyPath = os.PathLike
CHUNK = 1 << 22  # bytes read at a time
COPY_INTERVAL_SECONDS = 30.0  # a bucket accepts one write a second to an object, which replaces all of it

# epath has one file system per process, which its first user makes, possibly TFDS. So these settings come first.
if importlib.util.find_spec("gcsfs"):
    import fsspec

    # epath would use TensorFlow if that is installed. One backend is enough, and gcsfs is the tested one.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # Without this, gcsfs asks for the kind of a bucket before every access if the account may not read it.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # A cached listing of a folder would not show new files of other processes.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


def parse_path(text: str | os.PathLike) -> Path:
    """A path of this machine with `~` expanded, or one in a bucket.

    Raises:
      UserError: the address is of another kind or names no folder, or gcsfs is not installed.
    """
    text = re.sub("^gs:/(?=[^/])", "gs://", os.fspath(text))  # pathlib removes the second slash
    if "://" not in text:
        return _expanded(text)
    if not re.fullmatch("gs://[a-z0-9][a-z0-9._-]+/[^/].*", text):
        raise UserError(
            f"{text} is neither a path nor gs://BUCKET/FOLDER", "Name a folder; other storage can be mounted as one."
        )
    if odd := re.search(r"[^\w./=+@,-]", text.removeprefix("gs://")):  # such as the # of a URL, or a *
        raise UserError(f"{text} contains {odd[0]!r}", "Name the folder with letters, digits and . _ - = + @ , alone.")
    _file_system()
    from etils import epath

    return epath.Path(text.rstrip("/"))


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is an address in a bucket, not a path of this machine."""
    return "://" in os.fspath(path)


def absolute(path: Path) -> Path:
    """Path.absolute; an address in a bucket is absolute already."""
    return path if in_bucket(path) else path.absolute()


def local_path(text: str | os.PathLike) -> Path:
    """An absolute path of this machine; UserError for an address."""
    if in_bucket(text):
        raise UserError(f"{text} is not on this machine", "Name a local path, and copy the files from or to there.")
    return _expanded(text).absolute()


def _expanded(text: str | os.PathLike) -> Path:
    """A path of this machine with `~` expanded, because shells do not expand it in --name=~/folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        cause = f"{os.fspath(text)} starts with the name of an unknown user"
        raise UserError(cause, "Write the path out, or ./~NAME.") from None


def absolute_text(text: str | os.PathLike) -> str:
    """A path as absolute text, which is valid from any working folder; "" and an address in a bucket are unchanged."""
    return os.fspath(text) if not text or in_bucket(text) else os.fspath(local_path(text))


def printable(name: str | os.PathLike) -> str:
    """A path or name for messages and text files; bytes that are not UTF-8 are escaped, as in caf\\xe9."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a name from elsewhere that the locale cannot encode
        return os.fspath(name).encode("utf-8", "backslashreplace").decode()


def user_cache() -> Path:
    """The folder of files that this package can make again: compiled programs, lists of files."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "bt_jax"


@functools.cache
def _file_system():
    """The file system of gcsfs, for all threads."""
    if not importlib.util.find_spec("gcsfs"):
        raise UserError("Paths of gs:// need gcsfs, which is not installed", "Run pip install gcsfs.")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # no tracebacks: a UserError reports the failure in one line
    return fsspec.filesystem("gcs", finalize_on_close=True)


# ---------------------------------------------------------------------------------------------------------------- files


def write(path: Path, content: str | bytes | Callable[[IO[bytes]], object], *, shared: bool = False) -> None:
    """Writes a file atomically: readers see the complete old file or the complete new one.

    Args:
      content: text, bytes, or a function that writes to an open binary file.
      shared: several processes of this machine may write this file at the same time.
    """
    # A file name in the text may have bytes that are not UTF-8.
    content = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    if in_bucket(path):
        if callable(content):
            content(buffer := io.BytesIO())
            content = buffer.getvalue()
        try:
            path.write_bytes(content)
        except FileNotFoundError:
            raise UserError(f"There is no bucket for {path}", "Create it, or name another.") from None
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp" if shared else f".{path.name}.tmp")
    with interrupts.tidied(lambda: partial.unlink(missing_ok=True)):
        with partial.open("wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def remove_folder(folder: Path) -> None:
    """Removes a folder of this machine with its content, also while another thread writes to it. Ignores errors."""
    for _ in range(10):  # a library may make a folder again for its next file
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return


def read(path: Path) -> bytes | None:
    """The bytes of a file; None if it is missing, or local and unreadable. Raises if the bucket is unreachable."""
    try:
        return _file_system().cat_file(os.fspath(path)) if in_bucket(path) else path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        if in_bucket(path):
            raise
        return None


def to_json(content: Any, *, indent: int | None = None) -> str:
    """Strict JSON: numbers that are not finite become null, because the standard cannot write them."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path, content: dict[str, Any], *, shared: bool = False) -> None:
    """Writes an indented JSON file; see `write`."""
    write(path, to_json(content, indent=2) + "\n", shared=shared)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if `read` returns None.

    Raises:
      ValueError: the file is damaged or holds no object.
    """
    if (content := read(path)) is None:
        return None
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def is_dir(path: Path) -> bool:
    """Path.is_dir, but raises if the bucket is unreachable; epath's method returns False then."""
    if not in_bucket(path):
        return path.is_dir()
    try:
        return _file_system().info(os.fspath(path))["type"] == "directory"
    except FileNotFoundError:
        return False


def size(path: Path) -> int:
    """Size of a file in bytes."""
    return path.stat().length if in_bucket(path) else path.stat().st_size


def is_full(path: str | os.PathLike) -> bool:
    """Whether the disk of a path, existing or not, has no space for a small file. A bucket always has space."""
    if in_bucket(path):
        return False
    path = Path(path).expanduser().absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free < CHUNK


def checksum(path: Path, *, sync: bool = False) -> str:
    """CRC-32C of a file of this machine, 8 hexadecimal digits.

    Args:
      sync: wait until the file is on the disk.
    """
    result = google_crc32c.Checksum()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            result.update(chunk)
        if sync:
            os.fsync(file.fileno())
    return result.hexdigest().decode()


# -------------------------------------------------------------------------------------------------------------- folders


def make(folder: Path) -> None:
    """Makes a folder and its parents; does nothing in a bucket, which has no folders."""
    if not in_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)


def check_bucket_access(folder: Path) -> None:
    """Raises UserError if this account may not read the bucket's metadata, which Orbax does for every deletion."""
    from google.api_core import exceptions
    from google.cloud import storage

    name = os.fspath(folder).removeprefix("gs://").partition("/")[0]
    try:
        storage.Client().get_bucket(name, timeout=60)
    except exceptions.NotFound:
        raise UserError(f"There is no bucket {name}", "Create it, or name another.") from None
    except exceptions.Forbidden as error:
        raise UserError(
            f"This account may not read the metadata of bucket {name}: {line(error)}",
            "Give it roles/storage.objectUser and roles/storage.legacyBucketReader there.",
        ) from error


def files_below(folder: Path) -> list[str]:
    """The sorted relative names of all files in a folder and its sub-folders."""
    if in_bucket(folder):
        return sorted(_listed(folder))
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def contents(folder: Path, *, sync: bool = False) -> Callable[[str], tuple[int, Callable[[], str]] | None]:
    """contents(folder)(name) -> (size in bytes, () -> CRC-32C) of a file below the folder; None if it is missing.

    In a bucket this takes one request, because the bucket stores the checksum of every object.
    """
    if in_bucket(folder):
        objects = _listed(folder)
        codes = {name: base64.b64decode(about["crc32c"]).hex() for name, about in objects.items()}
        return lambda name: (objects[name]["size"], lambda: codes[name]) if name in objects else None

    def local(name):
        path = folder / name
        return (size(path), lambda: checksum(path, sync=sync)) if path.is_file() else None

    return local


def _listed(folder: Path) -> dict[str, dict]:
    root = os.fspath(folder).removeprefix("gs://") + "/"
    return {name.removeprefix(root): about for name, about in _file_system().find(root, detail=True).items()}


def sync(folder: Path) -> None:
    """Waits until the entries of a folder are on the disk, as fsync does for the bytes of a file."""
    if in_bucket(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(folder: Path, to: Path) -> None:
    """Renames a folder on the same disk, or in the same bucket by copying every object."""
    if not in_bucket(folder):
        to.parent.mkdir(exist_ok=True)
        folder.rename(to)
        return
    bucket = _file_system()
    for name in files_below(folder):
        bucket.cp_file(os.fspath(folder / name), os.fspath(to / name))
    bucket.rm(os.fspath(folder), recursive=True)


# --------------------------------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def bucket_errors_as_user_errors() -> Iterator[None]:
    """Converts errors of an unreachable bucket into a UserError; also a decorator."""
    try:
        yield
    except Exception as error:
        if user_error := as_user_error(error, "The bucket cannot be reached"):
            raise user_error from error
        raise


def as_user_error(error: BaseException, what: str) -> UserError | None:
    """The UserError for a bucket or network error; None for any other error."""
    # Their classes are common ones, such as OSError. So the traceback decides, or the text of TensorStore's errors.
    frames = traceback.walk_tb(error.__traceback__)
    clients = ("fsspec.", "gcsfs.", "google.")
    from_client = any(frame.f_globals.get("__name__", "").startswith(clients) for frame, _ in frames)
    if isinstance(error, (FileNotFoundError, UserError)) or not (
        from_client or re.search("Error (opening|reading|writing) .*gs://", str(error))
    ):
        return None
    text = f"{type(error).__name__} {error}"
    refused = any(word in text for word in ("Credentials", "Forbidden", "PERMISSION_DENIED", "UNAUTHENTICATED"))
    refused = refused or getattr(error, "code", None) in (401, 403)
    fix = "Give this account access, or log in: gcloud auth application-default login."
    return UserError(
        f"{what}: {line(error)}",
        fix if refused else "Run the same command again when the network is back.",
        status=2 if refused else TRY_AGAIN,
    )
