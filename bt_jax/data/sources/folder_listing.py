"""The list of the images below a folder, made once and cached in the user's cache folder.

The cache also holds the `stat` of every folder. While no folder has changed, opening a million files again costs one
`stat` per folder.
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
SETTLED = 2_000_000_000  # ns without a change of any folder before the listing is cached


class Listing(NamedTuple):
    """The images and folders below a folder.

    Attributes:
      folders: relative paths, "" for the root.
      marks: int64 (len(folders), 5), of `_marks`.
      files: relative paths of images, sorted by `in_order`.
      skipped: {kind: number of files left out}, by `formats.kind`; also counts hidden images and folders.
      unreadable: messages about sub-folders that cannot be listed.
    """

    folders: list[str]
    marks: np.ndarray
    files: list[str]
    skipped: dict[str, int]
    unreadable: list[str]


def listed(root: Path, cache: str | os.PathLike | None = None) -> Listing:
    """Lists a folder: from the cache if no folder has changed, otherwise from the disk.

    An unreadable sub-folder is left out. Every call tries it again until it becomes readable.

    Args:
      cache: folder of the cached list; None: $XDG_CACHE_HOME/bt_jax/folders. An unwritable cache is ignored.

    Raises:
      UserError: the root cannot be read.
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
    """Sorts names by their UTF-8 characters in every locale, so that an image has the same id on every machine."""
    if sys.getfilesystemencoding() == "utf-8":
        return sorted(names)
    return sorted(names, key=lambda name: os.fsencode(name).decode("utf-8", "surrogateescape"))


def _walk(root: Path) -> tuple[Listing, bool]:
    """The listing, and whether it may be cached.

    Lists folders level by level, 16 at a time, because on a network disk most of the time is waiting.
    """
    folders, marks, files, skipped, unreadable, level = [], [], [], Counter(), [], [""]
    with ThreadPoolExecutor(16) as pool:
        while level:
            folders += level
            marks.append(_marks(root, level))  # before the listing, so that a later change shows in the marks
            deeper = []
            for folder, result in zip(level, pool.map(lambda folder: _try_scan(root, folder), level), strict=True):
                if isinstance(result, OSError):
                    cause = f"Cannot list {storage.printable(root / folder)}: {result.strerror}"
                    if not folder:
                        raise UserError(cause, "Make it readable.")
                    unreadable.append(cause)
                    continue
                files += result[0]
                deeper += result[1]
                skipped += result[2]
            level = sorted(deeper)
            if sys.stderr.isatty():
                where = storage.printable(root)
                print(f"\rlisting {where}: {len(files)} images", end="" if level else "\n", file=sys.stderr, flush=True)
    marks = np.concatenate(marks)
    # A folder that has just changed may change again within the same tick of the clock.
    settled = not unreadable and marks[:, :2].max() < time.time_ns() - SETTLED
    return Listing(folders, marks, in_order(files), dict(skipped), unreadable), settled


def _try_scan(root: Path, folder: str) -> tuple[list[str], list[str], Counter] | OSError:
    try:
        return _scan(root, folder)
    except OSError as error:
        return error


def _scan(root: Path, folder: str) -> tuple[list[str], list[str], Counter]:
    """Relative paths of the images and of the folders in one folder, and its part of `Listing.skipped`."""
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
    except OSError:  # a link to itself or into a locked folder: reading the image will report it
        return False


def _leads_back(root: Path, folder: str, link: str) -> bool:
    """True if a symlink points to one of its own parents, which would be listed for ever."""
    above = [root / folder, *(root / folder).parents][: len(Path(folder).parts) + 1]
    return os.path.realpath(link) in {os.path.realpath(path) for path in above}


def _marks(root: Path, folders: list[str]) -> np.ndarray:
    """int64 (n, 5): modification and change times in ns, inode, number of links, size; -1 for a missing folder.

    They show a change of a folder even if its modification time was set back.
    """

    def marks(folder):
        try:
            stat = os.stat(root / folder)
        except OSError:
            return (-1,) * 5
        inode = stat.st_ino % 2**63
        return stat.st_mtime_ns, stat.st_ctime_ns, inode, stat.st_nlink, stat.st_size

    with ThreadPoolExecutor(16) as pool:
        return np.array(list(pool.map(marks, folders)), np.int64).reshape(-1, 5)


def _read_cache(file: Path) -> Listing | None:
    """The cached listing; None if it is missing, damaged, of another version, or made with other decoders."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            if int(stored["format"]) != CACHE_FORMAT or str(stored["suffixes"]) != _known_suffixes():
                return None
            folders, files = (os.fsdecode(stored[name].tobytes()).split("\0") for name in ("folders", "files"))
            skipped = dict(zip(stored["kinds"].tolist(), stored["counts"].tolist(), strict=True))
            return Listing(folders, stored["marks"], [path for path in files if path], skipped, [])
    except Exception:  # NumPy, zipfile and the decoder raise many types on a damaged file
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
    with contextlib.suppress(OSError):  # the next start lists the folder again
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write(file, partial(np.savez_compressed, **arrays), shared=True)


def _known_suffixes() -> str:
    return " ".join(sorted(formats.suffixes()))
