"""What a checkpoint is made of, to the byte: `manifest.json` in its folder, by which damage is found and named.

Written before the checkpoint gets its final name, and everything is on the disk by then: a folder of that name without
a manifest, or with one that does not agree, is not to be trusted.
"""

import json
from pathlib import Path

from bt_jax import storage
from bt_jax.messages import UserError

NAME = "manifest.json"
FORMAT = 2  # of the checkpoint as a whole; format 1 had no manifest
NEEDED = {"encoder", "model"}  # sub-folders that every checkpoint has
# What Orbax opens first of a part with arrays: the tree of names, and where TensorStore finds the bytes of each.
ARRAYS = ("_METADATA", "manifest.ocdbt")
MODEL = ("metadata",)


def write(folder: Path) -> None:
    """Notes length and CRC-32C of every file in the folder's sub-folders, and waits until all of it is on the disk.

    The files at the top are Orbax's own, written later; nothing is read from them.

    Raises:
      UserError: Orbax has left out a file without which a part cannot be read.
    """
    names = [name for name in storage.files_below(folder) if "/" in name]
    if lacking := _lacking(names):
        raise UserError(
            f"Orbax wrote a checkpoint to {folder} that nobody can read: it lacks {lacking}",
            "Name a run folder whose path has letters and digits alone; earlier checkpoints are whole.",
        )
    contents, files = storage.contents(folder, sync=True), {}
    for name in names:
        size, checksum = contents(name)
        files[name] = [size, checksum()]
    for inner in {parent for name in names for parent in Path(name).parents if parent.name}:
        storage.sync(folder / inner)
    storage.write(folder / NAME, storage.to_json({"format": FORMAT, "files": files}, indent=1))
    storage.sync(folder)


def find_damage(folder: Path, parts: tuple[str, ...] | None = None) -> str:
    """What is wrong with a checkpoint, naming the file, or "" where every byte is as it was written.

    Args:
      parts: its sub-folders to look at; by default all.
    """
    if (content := storage.read(folder / NAME)) is None:
        return f"no {NAME}: of an earlier version of bt_jax (format 1), or not finished"
    try:
        version, files = _noted(content)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"{NAME} is damaged"
    if version != FORMAT:
        return f"it has format {version}, where this version of bt_jax reads format {FORMAT}"
    if lacking := _lacking([name.as_posix() for name, *_ in files], parts):
        return f"{lacking} is missing, and was when it was written"
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


def _noted(content: bytes) -> tuple[int, list[tuple[Path, int, str]]]:
    """(format, [(name, bytes, checksum)]) of a manifest; raises anything but OSError where it is none."""
    noted = json.loads(content)
    version = noted["format"]
    files = [(Path(name), int(size), str(checksum)) for name, (size, checksum) in noted["files"].items()]
    if version == FORMAT and not {path.parts[0] for path, *_ in files} >= NEEDED:
        raise ValueError("parts are missing")
    return version, files


def _lacking(names: list[str], parts: tuple[str, ...] | None = None) -> str:
    """The first file that a reader needs and the names lack, or ""; of all parts that they name, or of those given."""
    found = {name.partition("/")[0] for name in names} | NEEDED
    for part in sorted(found & set(parts) if parts else found):
        for needed in MODEL if part == "model" else ARRAYS:
            if f"{part}/{needed}" not in names:
                return f"{part}/{needed}"
    return ""
