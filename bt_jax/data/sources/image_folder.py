"""A folder of images as it lies on the disk: labelled by sub-folder, or not labelled at all.

    ROOT/train/CLASS/*.jpg, ROOT/val/CLASS/*.jpg     splits "train" and "val" with classes, as torchvision's ImageFolder
    ROOT/train/*.png                                 a split without labels
    ROOT/CLASS/*.jpg  or  ROOT/*.png                 one split, "train"

The files are listed once, sorted by path, and the list is kept in the user's cache folder with the modification times
of all folders: while none has changed, opening a million files again costs one `stat` a folder. A split has labels
where all of its images lie in sub-folders.
"""

import contextlib
import hashlib
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bt_jax import storage
from bt_jax.data.sources.base import Source
from bt_jax.messages import UserError

SPLITS = ("train", "val", "validation", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
CACHE_FORMAT = 1
SETTLED = 2_000_000_000  # ns that every folder must have been left alone before its listing is kept


class Listing(NamedTuple):
    """What lies below a folder.

    Attributes:
      folders: relative paths, "" the root itself.
      times: int64, modification time in ns of each.
      files: relative paths of images, sorted.
    """

    folders: list[str]
    times: np.ndarray
    files: list[str]


class FolderSource(Source):
    """Images below a folder; the id of an image is its place in the sorted list of its split.

    A sub-folder that cannot be read is left out and named on stderr, at every start until it can be.

    Args:
      root: the folder.
      cache: where the list is kept; None: $XDG_CACHE_HOME/bt_jax/folders. An unwritable one is done without.

    Raises:
      UserError: no such folder, one that cannot be read, no image.
    """

    def __init__(self, root: str | os.PathLike, *, cache: str | os.PathLike | None = None):
        self.root = Path(root).expanduser().absolute()
        self.name = self.root.name
        if not self.root.is_dir():
            raise UserError(f"There is no folder {self.root}", "Name the folder that holds the images.")
        files = _listed(self.root, _cache_file(self.root, cache)).files
        if not files:
            raise UserError(
                f"There is no image below {self.root}", f"It needs files ending in {', '.join(SUFFIXES)}, in any case."
            )
        by_split = _splits(files)
        self._files = by_split
        self.splits = {split: len(paths) for split, (_, paths) in by_split.items()}
        classes = {split: _classes(paths) for split, (_, paths) in by_split.items()}
        names = sorted({name for found in classes.values() for name in found})
        self.class_names = names if len(names) > 1 else []
        self.num_classes = len(self.class_names)
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self._labels = {
            split: np.array([numbers[path.partition("/")[0]] for path in paths], np.int32)
            for split, (_, paths) in by_split.items()
            if numbers and classes[split]
        }

    def labelled(self, base):
        return base in self._labels

    def labels(self, base):
        return self._labels[base] if base in self._labels else np.full(self.splits[base], -1, np.int32)

    def path(self, base: str, number: int) -> Path:
        """The file of an id."""
        prefix, paths = self._files[base]
        return self.root / prefix / paths[number]

    def where(self, base, number):
        return str(self.path(base, number))

    def read(self, base, ids):
        labels = self._labels.get(base)
        return [(_bytes(self.path(base, int(i))), None if labels is None else int(labels[i])) for i in ids]


def _splits(files: list[str]) -> dict[str, tuple[str, list[str]]]:
    """{split: (its folder, paths below it)}; one split "train" where no top folder is named like a split."""
    tops = {path.partition("/")[0] for path in files if "/" in path}
    named = [split for split in SPLITS if split in tops]
    if "train" not in named:
        return {"train": ("", files)}
    return {
        split: (split, [path.removeprefix(f"{split}/") for path in files if path.startswith(f"{split}/")])
        for split in named
    }


def _classes(paths: list[str]) -> set[str]:
    """Names of the top folders, or none where an image lies in no folder; said where only some do."""
    loose = [path for path in paths if "/" not in path]
    if loose and len(loose) < len(paths):
        told = f"{len(loose)} of {len(paths)} images lie in no sub-folder ({loose[0]} ...)"
        print(f"WARNING: {told}, so sub-folders are not taken as labels", file=sys.stderr)
    return set() if loose else {path.partition("/")[0] for path in paths}


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"Cannot read {path}: {error.strerror}", "Restore the file, or list the folder again."
        ) from None


# The list of files ----------------------------------------------------------------------------------------------------


def _listed(root: Path, cache: Path) -> Listing:
    """From the cache where no folder has changed since, else from the disk."""
    known = _read_cache(cache)
    if known is not None and _times(root, known.folders) == known.times.tolist():
        return known
    listing, whole = _walk(root)
    if whole:
        _write_cache(cache, listing)
    return listing


def _walk(root: Path) -> tuple[Listing, bool]:
    """The listing, and whether it may be kept. Folders level by level, 16 at a time: on a network disk it is
    the waiting that costs."""
    folders, times, files, level, whole = [], [], [], [""], True
    with ThreadPoolExecutor(16) as pool:
        while level:
            folders += level
            times += _times(root, level)  # before they are listed: what comes later shows
            deeper = []
            for folder, found in zip(level, pool.map(lambda folder: _try_scan(root, folder), level), strict=True):
                if isinstance(found, OSError):
                    cause = f"Cannot list {root / folder}: {found.strerror}"
                    if not folder:
                        raise UserError(cause, "Make it readable.")
                    print(f"WARNING: {cause}; its images are left out", file=sys.stderr)
                    whole = False
                    continue
                files += found[0]
                deeper += found[1]
            level = sorted(deeper)
            if sys.stderr.isatty():
                print(f"\rlisting {root}: {len(files)} images", end="" if level else "\n", file=sys.stderr, flush=True)
    # A folder that has just changed may change again within the same tick of its clock.
    whole = whole and max(times) < time.time_ns() - SETTLED
    return Listing(folders, np.array(times, np.int64), sorted(files)), whole


def _try_scan(root: Path, folder: str) -> tuple[list[str], list[str]] | OSError:
    try:
        return _scan(root, folder)
    except OSError as error:
        return error


def _scan(root: Path, folder: str) -> tuple[list[str], list[str]]:
    """Relative paths of the images and of the folders in one folder; hidden ones are left out."""
    prefix, images, below = f"{folder}/" if folder else "", [], []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if not (entry.is_symlink() and _leads_back(root, folder, entry.path)):
                    below.append(prefix + entry.name)
            elif entry.name.lower().endswith(SUFFIXES):
                images.append(prefix + entry.name)
    return images, below


def _leads_back(root: Path, folder: str, link: str) -> bool:
    """Whether a link in a folder points to one that is being listed above it, and so would be listed for ever."""
    above = [root / folder, *(root / folder).parents][: len(Path(folder).parts) + 1]
    return os.path.realpath(link) in {os.path.realpath(path) for path in above}


def _times(root: Path, folders: list[str]) -> list[int]:
    """Modification times in ns; -1 for a folder that is gone."""

    def modified(folder):
        try:
            return os.stat(root / folder).st_mtime_ns
        except OSError:
            return -1

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(modified, folders))


def _cache_file(root: Path, cache: str | os.PathLike | None) -> Path:
    folder = Path(cache) if cache else storage.user_cache() / "folders"
    return folder / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:24]}.npz"


def _read_cache(file: Path) -> Listing | None:
    """None where there is none, or it is damaged or of another version: it is only a cache."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            if int(stored["format"]) != CACHE_FORMAT:
                return None
            folders, files = (os.fsdecode(stored[name].tobytes()).split("\0") for name in ("folders", "files"))
            return Listing(folders, stored["times"], [path for path in files if path])
    except Exception:  # whatever NumPy, zipfile or the decoder raise on a damaged file
        return None


def _write_cache(file: Path, listing: Listing) -> None:
    arrays = {
        "format": np.int64(CACHE_FORMAT),
        "folders": np.frombuffer(os.fsencode("\0".join(listing.folders)), np.uint8),
        "times": listing.times,
        "files": np.frombuffer(os.fsencode("\0".join(listing.files)), np.uint8),
    }
    with contextlib.suppress(OSError):  # listed again the next time
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write(file, partial(np.savez_compressed, **arrays), shared=True)
