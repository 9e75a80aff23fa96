"""The list of the images below a folder, made once and kept in the user's cache folder.

It is kept with what the file system says of every folder: while none has changed, opening a million files again costs
one `stat` a folder.
"""

import contextlib
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bt_jax import storage
from bt_jax.data.sources import formats
from bt_jax.messages import UserError

CACHE_FORMAT = 2
SETTLED = 2_000_000_000  # ns that every folder must have been left alone before its listing is kept


class Listing(NamedTuple):
    """What lies below a folder.

    Attributes:
      folders: relative paths, "" the root itself.
      marks: int64 (len(folders), 5), of `_marks`.
      files: relative paths of images, in the order of `in_order`.
      skipped: how many files were left out, by `formats.kind`, and images and folders that are hidden.
      unreadable: sub-folders that cannot be listed, with the reason.
    """

    folders: list[str]
    marks: np.ndarray
    files: list[str]
    skipped: dict[str, int]
    unreadable: list[str]


def listed(root: Path, cache: str | os.PathLike | None = None) -> Listing:
    """From the cache where no folder has changed since, else from the disk.

    A sub-folder that cannot be read is left out, and looked into again by every call until it can be.

    Args:
      cache: where the list is kept; None: $XDG_CACHE_HOME/bt_jax/folders. An unwritable one is done without.

    Raises:
      UserError: the root itself cannot be read.
    """
    folder = Path(cache) if cache else storage.user_cache() / "folders"
    file = folder / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:24]}.npz"
    known = _read_cache(file)
    if known is not None and np.array_equal(_marks(root, known.folders), known.marks):
        return known
    listing, settled = _walk(root)
    if settled:
        _write_cache(file, listing)
    return listing


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted as UTF-8 decodes them, in every locale: an image keeps its id on another machine."""
    if sys.getfilesystemencoding() == "utf-8":
        return sorted(names)
    return sorted(names, key=lambda name: os.fsencode(name).decode("utf-8", "surrogateescape"))


def _walk(root: Path) -> tuple[Listing, bool]:
    """The listing, and whether it may be kept. Folders level by level, 16 at a time: on a network disk it is
    the waiting that costs."""
    folders, marks, files, skipped, unreadable, level = [], [], [], Counter(), [], [""]
    with ThreadPoolExecutor(16) as pool:
        while level:
            folders += level
            marks.append(_marks(root, level))  # before they are listed: what comes later shows
            deeper = []
            for folder, found in zip(level, pool.map(lambda folder: _try_scan(root, folder), level), strict=True):
                if isinstance(found, OSError):
                    cause = f"Cannot list {storage.printable(root / folder)}: {found.strerror}"
                    if not folder:
                        raise UserError(cause, "Make it readable.")
                    unreadable.append(cause)
                    continue
                files += found[0]
                deeper += found[1]
                skipped += found[2]
            level = sorted(deeper)
            if sys.stderr.isatty():
                where = storage.printable(root)
                print(f"\rlisting {where}: {len(files)} images", end="" if level else "\n", file=sys.stderr, flush=True)
    marks = np.concatenate(marks)
    # A folder that has just changed may change again within the same tick of its clock.
    settled = not unreadable and marks[:, :2].max() < time.time_ns() - SETTLED
    return Listing(folders, marks, in_order(files), dict(skipped), unreadable), settled


def _try_scan(root: Path, folder: str) -> tuple[list[str], list[str], Counter] | OSError:
    try:
        return _scan(root, folder)
    except OSError as error:
        return error


def _scan(root: Path, folder: str) -> tuple[list[str], list[str], Counter]:
    """Relative paths of the images and of the folders in one folder, and what is left out, as `Listing.skipped`."""
    prefix, images, below, skipped = f"{folder}/" if folder else "", [], [], Counter()
    known = formats.suffixes()
    with os.scandir(root / folder) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            is_folder = _is_folder(entry)
            if entry.name.startswith("."):
                skipped[formats.HIDDEN] += is_folder or suffix in known
            elif is_folder:
                if not (entry.is_symlink() and _leads_back(root, folder, entry.path)):
                    below.append(prefix + entry.name)
            elif suffix in known:
                images.append(prefix + entry.name)
            else:
                skipped[formats.kind(suffix)] += 1
    return images, below, +skipped


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that is locked: reading it says so
        return False


def _leads_back(root: Path, folder: str, link: str) -> bool:
    """Whether a link in a folder points to one that is being listed above it, and so would be listed for ever."""
    above = [root / folder, *(root / folder).parents][: len(Path(folder).parts) + 1]
    return os.path.realpath(link) in {os.path.realpath(path) for path in above}


def _marks(root: Path, folders: list[str]) -> np.ndarray:
    """int64 (n, 5): by which a change of a folder is noticed, also if its time of modification was set back: times of
    modification and of change in ns, inode, links to it, size; -1 for a folder that is gone."""

    def marks(folder):
        try:
            found = os.stat(root / folder)
        except OSError:
            return (-1,) * 5
        inode = found.st_ino % 2**63
        return found.st_mtime_ns, found.st_ctime_ns, inode, found.st_nlink, found.st_size

    with ThreadPoolExecutor(16) as pool:
        return np.array(list(pool.map(marks, folders)), np.int64).reshape(-1, 5)


def _read_cache(file: Path) -> Listing | None:
    """None where there is none, or it is damaged, of another version, or made with other decoders."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            if int(stored["format"]) != CACHE_FORMAT or str(stored["suffixes"]) != _known_suffixes():
                return None
            folders, files = (os.fsdecode(stored[name].tobytes()).split("\0") for name in ("folders", "files"))
            skipped = dict(zip(stored["kinds"].tolist(), stored["counts"].tolist(), strict=True))
            return Listing(folders, stored["marks"], [path for path in files if path], skipped, [])
    except Exception:  # whatever NumPy, zipfile or the decoder raise on a damaged file
        return None


def _write_cache(file: Path, listing: Listing) -> None:
    arrays = {
        "format": np.int64(CACHE_FORMAT),
        "suffixes": np.array(_known_suffixes()),
        "folders": np.frombuffer(os.fsencode("\0".join(listing.folders)), np.uint8),
        "marks": listing.marks,
        "files": np.frombuffer(os.fsencode("\0".join(listing.files)), np.uint8),
        "kinds": np.array(list(listing.skipped), "U"),
        "counts": np.array(list(listing.skipped.values()), np.int64),
    }
    with contextlib.suppress(OSError):  # listed again the next time
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write(file, partial(np.savez_compressed, **arrays), shared=True)


def _known_suffixes() -> str:
    return " ".join(sorted(formats.suffixes()))
