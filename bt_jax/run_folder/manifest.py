"""What a checkpoint is made of, to the byte: `manifest.json` in its folder, by which damage is found and named.

Written before the checkpoint gets its final name, and everything is on the disk by then: a folder of that name without
a manifest, or with one that does not agree, is not to be trusted.
"""

import json
from pathlib import Path

from bt_jax import storage

NAME = "manifest.json"
FORMAT = 2  # of the checkpoint as a whole; format 1 had no manifest
NEEDED = {"encoder", "model"}  # sub-folders that every checkpoint has


def write(folder: Path) -> None:
    """Notes length and CRC-32C of every file in the folder's sub-folders, and waits until all of it is on the disk.

    The files at the top are Orbax's own, written later; nothing is read from them.
    """
    names = [name for name in storage.files_below(folder) if "/" in name]
    contents, files = storage.contents(folder, sync=True), {}
    for name in names:
        size, checksum = contents(name)
        files[name] = [size, checksum()]
    for inner in {parent for name in names for parent in Path(name).parents if parent.name}:
        storage.sync(folder / inner)
    storage.write(folder / NAME, json.dumps({"format": FORMAT, "files": files}, indent=1))
    storage.sync(folder)


def fault(folder: Path, parts: tuple[str, ...] | None = None) -> str:
    """What is wrong with a checkpoint, naming the file, or "" where every byte is as it was written.

    Args:
      parts: its sub-folders to look at; by default all.
    """
    if (content := storage.read(folder / NAME)) is None:
        return f"no {NAME}: of an earlier version of bt_jax (format 1), or not finished"
    try:
        noted = json.loads(content)
        version = noted["format"]
        files = [(Path(name), int(size), str(checksum)) for name, (size, checksum) in noted["files"].items()]
        complete = version != FORMAT or {path.parts[0] for path, *_ in files} >= NEEDED
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        complete, version = False, FORMAT
    if not complete:
        return f"{NAME} is damaged"
    if version != FORMAT:
        return f"it has format {version}, where this version of bt_jax reads format {FORMAT}"
    contents = storage.contents(folder)
    for name, size, checksum in files:
        if parts and name.parts[0] not in parts:
            continue
        if (found := contents(name.as_posix())) is None:
            return f"{name} is missing"
        if found[0] != size:
            return f"{name} has {found[0]} bytes instead of {size}"
        if found[1]() != checksum:
            return f"{name} has other bytes than were written"
    return ""
