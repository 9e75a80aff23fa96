"""What every data set offers: encoded images with their labels by id, splits and their slices, and a split as arrays.

A split is named as TFDS names it ("train", "test", "validation") and may be cut: "train[:90%]", "train[45000:]". The id
of an image is its position in the WHOLE split, so a cut split keeps the ids, and with them the augmentations, of the
whole one. Where a split lies class by class, as folders do, a cut holds a part of the classes; "train.mixed[:90%]"
holds the first 90 % of each class (`selection.with_mixed`).

One decoder (Pillow) makes arrays of encoded images, so a data set gives the same pixels by TFDS and from a cache file.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np

from bt_jax.data.sources import decode, spans
from bt_jax.data.sources.broken import Broken
from bt_jax.data.sources.spans import Arrays, Span
from bt_jax.messages import UserError


class Source:
    """What every data set offers.

    Attributes:
      name: str.
      splits: dict split -> number of images.
      num_classes: int, 0 where images carry neither a label nor targets.
      class_names: list of str, empty where unknown.
      notes: lines to print: what was left out of the data set, and what its folders mean.
      kind: of the data set, by which two digests may be compared; "" for one that never changes.
    """

    name: str
    splits: dict[str, int]
    num_classes: int = 0
    class_names: Sequence[str] = ()
    notes: Sequence[str] = ()
    kind: str = ""

    def span(self, split: str) -> Span:
        """Resolves "train", "train[:90%]", "train[45000:]", "train[-10%:]". UserError if there is no such split."""
        match = re.fullmatch(r"\s*([\w.-]+)\s*(?:\[\s*(-?[\d_]+%?)?\s*:\s*(-?[\d_]+%?)?\s*\])?\s*", split)
        if not match:
            raise UserError(
                f"split {split!r} is not understood", 'Write it as "train", "train[:90%]" or "train[45000:]"'
            )
        base, start, stop = match.groups()
        if base not in self.splits:
            raise UserError(f"{self.name} has no split {base!r}", f"It has: {', '.join(sorted(self.splits))}")
        count = self.splits[base]
        span = Span(base, spans.boundary(start or "0", count), spans.boundary(stop or str(count), count))
        if span.start >= span.stop:
            raise UserError(f"split {split!r} of {self.name} is empty: {base!r} has {count} images", "Widen the slice")
        return span

    def encoded(self, split: str) -> Iterator[tuple[bytes | UserError, int | None]]:
        """Yields (encoded image, label or None) in the order of ids; an error in the place of an unreadable one."""
        span = self.span(split)
        for first in range(span.start, span.stop, 1024):
            yield from self.try_read(span.base, range(first, min(first + 1024, span.stop)))

    def labelled(self, base: str) -> bool:
        """Whether the images of a split carry labels."""
        return self.num_classes > 0

    def agree(self, splits: Sequence[str]) -> bool:
        """Whether images carry a label in all of the splits, or in none. UserError where some do."""
        labelled = {split: self.labelled(self.span(split).base) for split in splits}
        if len(set(labelled.values())) > 1:
            without = ", ".join(split for split, has in labelled.items() if not has)
            raise UserError(f"{self.name} has no labels in {without}, and has them in the rest", "Write it by itself.")
        return all(labelled.values())

    def targets(self, base: str) -> np.ndarray | None:
        """What the images of a split show, where that may be several classes at once; None elsewhere.

        Returns:
          int8 (n, num_classes) in the order of ids, for the whole split: 1 present, -1 absent, 0 present but only in a
          way that is difficult to see. Such images have no label of `read`.

        Raises:
          UserError: a record cannot be read.
        """
        return None

    def labels(self, base: str) -> np.ndarray:
        """int32 (n,) of a whole split, -1 where there is none; reads every record unless the source knows better."""
        return np.array([-1 if label is None else label for _, label in self.encoded(base)], np.int32)

    def labels_at_hand(self, base: str) -> np.ndarray | None:
        """As `labels`, or None where that would read every record."""
        return None

    def digest(self, base: str) -> str:
        """A short text that changes with the images of a split, but not with their place; "" where they never change.

        It costs little: it is made of what is at hand, such as names of files and checksums.
        """
        return ""

    def as_in_0_1_0(self) -> "Source":
        """The data set as bt_jax 0.1.0 understood it: what counted as an image, as a split, as a class."""
        return self

    def file(self, base: str, number: int) -> str:
        """The name of an image's file within the data set, SPLIT/ID where images are not files."""
        return f"{base}/{number}"

    def random_access(self, base: str) -> bool:
        """Whether `read` is cheap in any order."""
        return True

    def read(self, base: str, ids: Iterable[int]) -> list[tuple[bytes, int | None]]:
        """(encoded image, label or None) of these ids of the whole split `base`, in the order asked. Thread-safe."""
        raise NotImplementedError

    def try_read(self, base: str, ids: Sequence[int]) -> list[tuple[bytes | UserError, int | None]]:
        """As `read`, with the error in the place of an image that cannot be read; its label is None."""
        try:
            return self.read(base, ids)
        except UserError:
            found = []
            for number in ids:
                try:
                    found += self.read(base, [number])
                except UserError as error:
                    found.append((error, None))
            return found

    def where(self, base: str, number: int) -> str:
        """What to call an image in a message: its file, where it has one."""
        return f"{self.name}, split {base!r}, id {number}"

    def arrays(self, split: str, broken: Broken | None = None, *, channels: int = 3) -> Arrays:
        """Decodes a whole split into memory, with 3 or 1 channels.

        Args:
          broken: is told of unreadable images, which become black and lose their label (-1); by default the first one
            is an error.

        Raises:
          UserError: images of several sizes.
        """
        span = self.span(split)
        broken = broken or Broken(self)
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
                    f"the images of {self.name}, split {split!r}, differ in size (id {span.start} is {w0}x{h0}, "
                    f"id {span.start + position} is {w}x{h}), so they do not fit one array",
                    "Stream this data set (data.pipeline) instead of holding it on the device",
                )
            images[position] = image
            labels[position] = -1 if label is None else label
        if images is None:
            raise UserError(f"No image of {self.name}, split {split!r}, can be read", "Check it: bt_jax.prepare")
        return Arrays(images, labels if self.labelled(span.base) else None)

    def _decoded(self, split: str, channels: int) -> Iterator[tuple[np.ndarray | Exception, int | None]]:
        """Decodes a chunk at a time, so that a data set that does not fit one array fails before it is all read."""
        records = self.encoded(split)
        with ThreadPoolExecutor(decode.cores()) as pool:
            while chunk := list(islice(records, 1024)):
                # Threads pass the interpreter lock around: for 32x32 images that costs more (93 us) than decoding (57
                # us).
                large = sum(len(data) for data, _ in chunk if isinstance(data, bytes)) > 8192 * len(chunk)
                decoder = partial(decode.try_decode, channels=channels)
                results = (pool.map if large else map)(decoder, [data for data, _ in chunk])
                for result, (_, label) in zip(results, chunk, strict=True):
                    yield result, label


def evenly(n: int, limit: int) -> np.ndarray:
    """`limit` indices spread over 0..n-1, first and last among them, int64; all where limit is 0 or too large."""
    return np.arange(n) if not limit or limit >= n else np.linspace(0, n - 1, limit).astype(np.int64)


def progress(items: Iterable, what: str, total: int) -> Iterator:
    """Passes items on; on a terminal, one line on stderr says how far it is."""
    shown = sys.stderr.isatty()
    for count, item in enumerate(items, 1):
        if shown and (count % 1000 == 0 or count == total):
            print(f"\r{what}: {count}/{total}", end="\n" if count == total else "", file=sys.stderr, flush=True)
        yield item
