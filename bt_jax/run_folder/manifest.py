"""The manifest of a checkpoint, `manifest.json`: length and checksum of every file, which show any damage.

It is written when all other files are on the disk, and before the checkpoint gets its final name. So a checkpoint
without a manifest, or with files that differ from it, is damaged.
"""

import json
from pathlib import Path, PurePath

from bt_jax import storage
from bt_jax.messages import UserError

NAME = "manifest.json"
FORMAT = 2  # of the checkpoint as a whole; format 1 had no manifest
NEEDED = {"encoder", "model"}  # sub-folders that every checkpoint has
# The files without which Orbax cannot open a part with arrays: the tree of names, and TensorStore's index of bytes.
ARRAYS = ("_METADATA", "manifest.ocdbt")
MODEL = ("metadata",)


def write(folder: Path) -> None:
    """Records length and CRC-32C of every file in the folder's sub-folders, and waits until all is on the disk.

    Files at the top are not recorded: Orbax writes them later, and no reader needs them.

    Raises:
      UserError: Orbax has not written a file without which a part cannot be read.
    """
    names = [name for name in storage.files_below(folder) if "/" in name]
    if lacking := _lacking(names):
        raise UserError(
            f"Orbax wrote an unreadable checkpoint to {folder}: it lacks {lacking}",
            "Name a run folder whose path has letters and digits alone. Earlier checkpoints are intact.",
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
    """Describes the damage of a checkpoint and names the file; "" if every byte is intact.

    Args:
      parts: sub-folders to check; by default all.
    """
    if (content := storage.read(folder / NAME)) is None:
        return f"no {NAME}: an earlier version of bt_jax (format 1) wrote it, or its save did not finish"
    try:
        version, files = _noted(content)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"{NAME} is damaged"
    if version != FORMAT:
        return f"it has format {version}, but this version of bt_jax reads format {FORMAT}"
    if lacking := _lacking([name.as_posix() for name, *_ in files], parts):
        return f"{lacking} is missing, and was never written"
    contents = storage.contents(folder)
    for name, size, checksum in files:
        if parts and name.parts[0] not in parts:
            continue
        if (stored := contents(name.as_posix())) is None:
            return f"{short(name)} is missing"
        if stored[0] != size:
            return f"{short(name)} has {stored[0]} bytes instead of {size}"
        if stored[1]() != checksum:
            return f"{short(name)} has a wrong checksum"
    return ""


def short(name: PurePath) -> str:
    """The name with at most 8 characters of a digest: TensorStore names its files by 32."""
    return str(name if len(name.name) < 32 else name.with_name(f"{name.name[:8]}..."))


def _noted(content: bytes) -> tuple[int, list[tuple[Path, int, str]]]:
    """(format, [(name, bytes, checksum)]) of a manifest; raises any type but OSError if it is invalid."""
    noted = json.loads(content)
    version = noted["format"]
    files = [(Path(name), int(size), str(checksum)) for name, (size, checksum) in noted["files"].items()]
    if version == FORMAT and not {path.parts[0] for path, *_ in files} >= NEEDED:
        raise ValueError("parts are missing")
    return version, files


def _lacking(names: list[str], parts: tuple[str, ...] | None = None) -> str:
    """The first file that is needed but missing in names, or ""; checks `parts`, or all parts in names."""
    present = {name.partition("/")[0] for name in names} | NEEDED
    for part in sorted(present & set(parts) if parts else present):
        for needed in MODEL if part == "model" else ARRAYS:
            if f"{part}/{needed}" not in names:
                return f"{part}/{needed}"
    return ""
