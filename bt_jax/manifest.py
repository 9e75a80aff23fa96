"""What a checkpoint is made of, to the byte: `manifest.json` in its folder, by which damage is found and named.

Written before the checkpoint gets its final name, and everything is on the disk by then: a folder of that name without
a manifest, or with one that does not agree, is not to be trusted.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

NAME = "manifest.json"
FORMAT = 2  # of the checkpoint as a whole; format 1 had no manifest
NEEDED = {"encoder", "model"}  # sub-folders that every checkpoint has
CHUNK = 1 << 22  # bytes read at a time


def write(folder: Path) -> None:
    """Notes length and CRC-32C of every file in the folder's sub-folders, and waits until all of it is on the disk.

    The files at the top are Orbax's own, written later; nothing is read from them.
    """
    files = {name: [path.stat().st_size, _checksum(path, sync=True)] for name, path in _files(folder)}
    for inner in (path for path in folder.rglob("*") if path.is_dir()):
        _sync(inner)
    temporary = folder / f"{NAME}.tmp"
    with temporary.open("w") as file:
        json.dump({"format": FORMAT, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / NAME)
    _sync(folder)


def fault(folder: Path, parts: tuple[str, ...] | None = None) -> str:
    """What is wrong with a checkpoint, naming the file, or "" where every byte is as it was written.

    Args:
      parts: its sub-folders to look at; by default all.
    """
    try:
        noted = json.loads((folder / NAME).read_text())
        version = noted["format"]
        files = [(Path(name), int(size), str(checksum)) for name, (size, checksum) in noted["files"].items()]
        complete = version != FORMAT or {path.parts[0] for path, *_ in files} >= NEEDED
    except FileNotFoundError:
        return f"no {NAME}: of an earlier version of bt_jax (format 1), or not finished"
    except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError):
        complete, version = False, FORMAT
    if not complete:
        return f"{NAME} is damaged"
    if version != FORMAT:
        return f"it has format {version}, where this version of bt_jax reads format {FORMAT}"
    for name, size, checksum in files:
        if parts and name.parts[0] not in parts:
            continue
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _checksum(path) != checksum:
            return f"{name} has other bytes than were written"
    return ""


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.parent != folder:
            yield path.relative_to(folder).as_posix(), path


def _checksum(path: Path, *, sync: bool = False) -> str:
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checksum.update(chunk)
        if sync:
            os.fsync(file.fileno())
    return checksum.hexdigest().decode()


def _sync(folder: Path) -> None:
    """A folder's entries, like a file's bytes, are on the disk only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
