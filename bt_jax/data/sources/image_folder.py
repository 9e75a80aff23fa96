"""A data set that is a folder of image files: labelled by sub-folder, or not labelled at all.

    ROOT/train/CLASS/*.jpg, ROOT/val/CLASS/*.jpg     splits "train" and "val" with classes, as torchvision's ImageFolder
    ROOT/train/*.png                                 a split without labels
    ROOT/CLASS/*.jpg  or  ROOT/*.png                 one split, "train"

`folder_layout` finds the splits, `formats` decides which files are images, and `folder_listing` lists the files.
A split has labels if all of its images are in sub-folders.
"""

import copy
import hashlib
import os
from pathlib import Path

import numpy as np

from bt_jax import storage
from bt_jax.data.sources import folder_layout, folder_listing, formats
from bt_jax.data.sources.base import Source
from bt_jax.messages import UserError


class FolderSource(Source):
    """The images below a folder; the id of an image is its position in the sorted list of its split.

    Args:
      root: the folder.
      cache: folder of the cached list, see `folder_listing.listed`.

    Raises:
      UserError: the folder is missing or unreadable, or holds no image.
    """

    kind, upright = "folder", True

    def __init__(self, root: str | os.PathLike, *, cache: str | os.PathLike | None = None):
        self.root = storage.local_path(root)
        self.name = storage.printable(self.root.name)
        if not self.root.is_dir():
            where = storage.printable(self.root)
            cause = f"{where} is a file" if self.root.is_file() else f"There is no folder {where}"
            raise UserError(cause, "Name the folder that holds the images.")
        self._listing = folder_listing.listed(self.root, cache)
        left_out = formats.left_out(self._listing.skipped)
        if not self._listing.files:
            why = f"; {left_out.removeprefix('WARNING: ')}" if left_out else ""
            raise UserError(
                f"There is no image below {storage.printable(self.root)}{why}",
                "Name a folder with files that Pillow decodes, such as .jpg, .png and .webp (upper or lower case).",
            )
        layout = folder_layout.arrange(self._listing.files)
        lines = [f"WARNING: {line}; its images are left out" for line in self._listing.unreadable] + layout.lines
        self.notes = [_about(self.name, line) for line in [*lines, left_out] if line]
        self.label_notes = [_about(self.name, line) for line in layout.label_lines]
        self.label_hint = layout.label_hint
        self._take(layout.splits)

    def _take(self, by_split: dict[str, tuple[str, list[str]]]) -> None:
        self._files = by_split
        self.splits = {split: len(paths) for split, (_, paths) in by_split.items()}
        classes = {split: folder_layout.classes(paths) for split, (_, paths) in by_split.items()}
        names = folder_listing.in_order({name for of_split in classes.values() for name in of_split})
        names = names if len(names) > 1 else []
        self.class_names, self.num_classes = [storage.printable(name) for name in names], len(names)
        numbers = {name: number for number, name in enumerate(names)}
        self._labels = {
            split: np.array([numbers[path.partition("/")[0]] for path in paths], np.int32)
            for split, (_, paths) in by_split.items()
            if numbers and classes[split]
        }

    def labelled(self, base):
        return base in self._labels

    def labels(self, base):
        return self._labels[base] if base in self._labels else np.full(self.splits[base], -1, np.int32)

    def _forget_labels(self):
        self._labels = {}

    def labels_at_hand(self, base):
        return self.labels(base)

    def digest(self, base):
        """A hash of the sorted list of files below the split's folder."""
        return hashlib.sha256(os.fsencode("\0".join(self._files[base][1]))).hexdigest()[:16]

    def as_in_0_1_0(self):
        source = copy.copy(self)
        source._take(folder_layout.arrange_as_0_1_0(self._listing.files))
        return source

    def path(self, base: str, number: int) -> Path:
        """The file of an image."""
        prefix, paths = self._files[base]
        return self.root / prefix / paths[number]

    def file(self, base, number):
        return self.path(base, number).relative_to(self.root).as_posix()

    def where(self, base, number):
        return storage.printable(self.path(base, number))

    def read(self, base, ids):
        labels = self._labels.get(base)
        return [(_bytes(self.path(base, int(i))), None if labels is None else int(labels[i])) for i in ids]


def _about(name: str, line: str) -> str:
    """The line with the name of the folder before it; a "WARNING: " stays in front."""
    warning = "WARNING: " if line.startswith("WARNING: ") else ""
    return f"{warning}{name}: {line.removeprefix(warning)}"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"Cannot read {storage.printable(path)}: {error.strerror}", "Restore the file, or list the folder again."
        ) from None
