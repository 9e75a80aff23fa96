"""The interface of every data set: encoded images and labels by id, splits and slices of them, a split as arrays.

Splits have the names of TFDS ("train", "test", "validation") and may be sliced: "train[:90%]", "train[45000:]". The id
of an image is its position in the WHOLE split, so a slice keeps the ids, and with them the augmentations, of the whole
split. A slice of a split that is sorted by class, as folders are, holds only some of the classes. "train.mixed[:90%]"
holds the first 90 % of each class (`selection.with_mixed`).

One decoder (Pillow) makes arrays of encoded images, so TFDS and a cache file give the same pixels of a data set.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Self

import numpy as np

from bt_jax.data.sources import decode, spans
from bt_jax.data.sources.broken import UnreadableImages
from bt_jax.data.sources.spans import Arrays, Span
from bt_jax.messages import UserError

SLICE = r"\[\s*(-?[\d_]+%?)?\s*:\s*(-?[\d_]+%?)?\s*\]\s*"


class Source:
    """The base class of all data sets.

    Attributes:
      name: str.
      splits: dict split -> number of images.
      num_classes: int, 0 if images have neither a label nor targets.
      class_names: list of str, empty if unknown.
      notes: lines to print about files that were left out and about the meaning of the folders.
      label_notes: lines to print about the labels, unless they are not used.
      label_hint: text to append to the last of these lines, for a task that can leave labels out.
      kind: kind of data set. Digests of two data sets are comparable if they have the same kind; "" if the data set
        never changes.
      upright: whether every decoder turns the images by their EXIF orientation.
    """

    name: str
    splits: dict[str, int]
    num_classes: int = 0
    class_names: Sequence[str] = ()
    notes: Sequence[str] = ()
    label_notes: Sequence[str] = ()
    label_hint: str = ""
    kind: str = ""
    upright: bool = False

    def span(self, split: str) -> Span:
        """Resolves "train", "train[:90%]", "train[45000:]", "train[-10%:]", and "train[:90%][:64]", a slice of a slice.

        Raises:
          UserError: there is no such split, or it is empty.
        """
        match = re.fullmatch(rf"\s*([\w.-]+)\s*((?:{SLICE})*)", split)
        if not match:
            raise UserError(
                f"Split {split!r} is not understood", 'Write it as "train", "train[:90%]" or "train[45000:]".'
            )
        base, slices = match[1], match[2]
        if base not in self.splits:
            raise UserError(
                f"{self.name} has no split {base!r}", f"Name one of its splits: {', '.join(sorted(self.splits))}."
            )
        first, count = 0, self.splits[base]
        for start, stop in re.findall(SLICE, slices):
            ends = spans.boundary(start or "0", count), spans.boundary(stop or str(count), count)
            first, count = first + ends[0], max(ends[1] - ends[0], 0)
        span = Span(base, first, first + count)
        if not count:
            raise UserError(
                f"Split {split!r} of {self.name} is empty: {base!r} has {self.splits[base]} images", "Widen the slice."
            )
        return span

    def encoded(self, split: str) -> Iterator[tuple[bytes | UserError, int | None]]:
        """Yields (encoded image, label or None) in the order of ids; an unreadable image is a UserError instead."""
        span = self.span(split)
        for first in range(span.start, span.stop, 1024):
            yield from self.try_read(span.base, range(first, min(first + 1024, span.stop)))

    def labelled(self, base: str) -> bool:
        """Whether the images of a split have labels."""
        return self.num_classes > 0

    def all_or_none_labelled(self, splits: Sequence[str]) -> bool:
        """True if all of the splits have labels, False if none has. UserError if only some have."""
        labelled = {split: self.labelled(self.span(split).base) for split in splits}
        if len(set(labelled.values())) > 1:
            without = ", ".join(split for split, has in labelled.items() if not has)
            raise UserError(
                f"{self.name} has no labels in {without}, but has them in the other splits",
                "Write labelled and unlabelled splits separately.",
            )
        return all(labelled.values())

    def targets(self, base: str) -> np.ndarray | None:
        """Multi-label targets of a whole split; None for single-label data. Multi-label images have no label of `read`.

        Returns:
          int8 (n, num_classes) in the order of ids: 1 present, -1 absent, 0 present but difficult to see.

        Raises:
          UserError: a record cannot be read.
        """
        return None

    def labels(self, base: str) -> np.ndarray:
        """int32 (n,): labels of a whole split, -1 for an image without one; by default reads every record."""
        return np.array([-1 if label is None else label for _, label in self.encoded(base)], np.int32)

    def labels_at_hand(self, base: str) -> np.ndarray | None:
        """The `labels` of a split; None if that would read every record."""
        return None

    def digest(self, base: str) -> str:
        """A short text that changes with the images of a split but not with their path; "" if they never change.

        It reads no image: it is made of names of files, checksums or versions.
        """
        return ""

    def without_labels(self) -> Self:
        """The same images in the same order, with neither labels nor targets."""
        source = copy.copy(self)
        source.num_classes, source.class_names, source.label_notes = 0, (), ()
        source._forget_labels()
        return source

    def _forget_labels(self) -> None:
        """Changes this object, a copy, so that `labelled` is False and no method gives labels or targets."""
        raise NotImplementedError

    def as_in_0_1_0(self) -> "Source":
        """The data set with the images, splits and classes that bt_jax 0.1.0 gave it."""
        return self

    def originals(self, base: str, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Maps ids of a split, such as "train.mixed", to those of the stored splits: {stored split: its ids}."""
        return {base: ids}

    def file(self, base: str, number: int) -> str:
        """The path of an image's file within the data set; SPLIT/ID if images are not files."""
        return f"{base}/{number}"

    def random_access(self, base: str) -> bool:
        """Whether `read` is cheap in any order."""
        return True

    def read(self, base: str, ids: Iterable[int]) -> list[tuple[bytes, int | None]]:
        """Reads (encoded image, label or None) of ids of the whole split `base`, in the given order. Thread-safe."""
        raise NotImplementedError

    def try_read(self, base: str, ids: Sequence[int]) -> list[tuple[bytes | UserError, int | None]]:
        """Like `read`, but an unreadable image is a UserError instead, with label None."""
        try:
            return self.read(base, ids)
        except UserError:
            records = []
            for number in ids:
                try:
                    records += self.read(base, [number])
                except UserError as error:
                    records.append((error, None))
            return records

    def where(self, base: str, number: int) -> str:
        """The name of an image in messages: its file if it has one."""
        return f"{self.name}, split {base!r}, id {number}"

    def arrays(self, split: str, broken: UnreadableImages | None = None, *, channels: int = 3) -> Arrays:
        """Decodes a whole split into memory, with 3 or 1 channels.

        Args:
          broken: records unreadable images, which become black with label -1; by default the first one is an error.

        Raises:
          UserError: images of several sizes.
        """
        span = self.span(split)
        broken = broken or UnreadableImages(self)
        images, labels = None, np.full(span.stop - span.start, -1, np.int32)
        for position, (image, label) in enumerate(self._decoded(split, channels)):
            if isinstance(image, Exception):
                broken.add(span, span.start + position, image)
                continue
            if images is None:
                images = np.zeros((len(labels), *image.shape), np.uint8)
            if image.shape != images.shape[1:]:
                (h, w, _), (h0, w0, _) = image.shape, images.shape[1:]
                raise UserError(
                    f"The images of {self.name}, split {split!r}, differ in size (id {span.start} is {w0}x{h0}, "
                    f"id {span.start + position} is {w}x{h}), so they do not fit one array",
                    "Stream this data set: --config.data.on_device=False.",
                )
            images[position] = image
            labels[position] = -1 if label is None else label
        if images is None:
            raise UserError(
                f"No image of {self.name}, split {split!r}, can be read",
                "Check the data set: bt-jax prepare lists the reasons.",
            )
        return Arrays(images, labels if self.labelled(span.base) else None)

    def _decoded(self, split: str, channels: int) -> Iterator[tuple[np.ndarray | Exception, int | None]]:
        """Decodes in chunks, so that a data set that does not fit one array fails before all of it is read."""
        records = self.encoded(split)
        with ThreadPoolExecutor(decode.cores()) as pool:
            while chunk := list(islice(records, 1024)):
                # Threads hand over the interpreter lock. For 32x32 images this costs 93 us, and decoding 57 us.
                large = sum(len(data) for data, _ in chunk if isinstance(data, bytes)) > 8192 * len(chunk)
                decoder = partial(decode.try_decode, channels=channels, upright=self.upright)
                results = (pool.map if large else map)(decoder, [data for data, _ in chunk])
                for result, (_, label) in zip(results, chunk, strict=True):
                    yield result, label


def evenly_spaced(n: int, limit: int) -> np.ndarray:
    """int64: `limit` indices spread over 0..n-1, including both ends; all n if limit is 0 or at least n."""
    return np.arange(n) if not limit or limit >= n else np.linspace(0, n - 1, limit).astype(np.int64)
