"""Unreadable images: each is named and counted, and too many of them are an error."""

import contextlib
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from bt_jax import messages, storage
from bt_jax.data.sources.checking import Images, check_images, reason
from bt_jax.data.sources.spans import Span
from bt_jax.messages import UserError

FEW = 10  # unreadable images that are allowed for any share


def allowed(limit: float, count: int) -> int:
    """The number of images that may be unreadable, of `count`.

    Args:
      limit: the allowed share; 0: none, 1: all. With any other share at least FEW are allowed, but never all images.
    """
    if limit <= 0 or limit >= 1:
        return count if limit >= 1 else 0
    return min(max(FEW, int(limit * count + 1e-9)), count - 1)


def enough(unreadable: int, count: int) -> float:
    """The smallest share, rounded up to few digits, that allows `unreadable` of `count` images."""
    digits = max(2, math.ceil(math.log10(count)))
    return min(math.ceil(unreadable / count * 10**digits - 1e-9) / 10**digits, 1.0)


class Owner(Images, Protocol):
    """The part of `base.Source` that `UnreadableImages` needs."""

    name: str

    def where(self, base: str, number: int) -> str: ...


class UnreadableImages:
    """A record of unreadable images: each is named once, and too many of them end the run.

    Args:
      source: the data set.
      limit: share of the images of a split, or of the slice in use, that may be unreadable, see `allowed`; None: the
        first one is an error, without a search for others.
      say: prints a line.

    Attributes:
      lines: list of str, one for each unreadable image so far.
    """

    NAMED = 20  # on the terminal; the file names all
    OPTION = "--config.data.broken_limit"
    INSTEAD = "a black image replaces it"

    def __init__(self, source: Owner, *, limit: float | None = None, say: Callable[[str], None] = messages.show):
        self._source, self._limit, self._say = source, limit, say
        self._found: dict[str, set[int]] = {}
        self._named: set[str] = set()  # an image may be in several splits, such as "train" and "train.mixed"
        self._lock = threading.RLock()  # training reads ahead in a thread while an evaluation reads
        self.lines: list[str] = []
        self._file: Path | None = None
        self._later: threading.Timer | None = None

    def write_to(self, file: Path) -> None:
        """Lists all unreadable images in this file, one per line: those so far and those to come."""
        self._file, self._later = file, None
        if self.lines:
            storage.write(file, "".join(f"{line}\n" for line in self.lines))

    def known(self, span: Span, ids: np.ndarray) -> np.ndarray:
        """bool, shaped as `ids`: True for ids that are recorded already."""
        return np.isin(ids, list(self._found.get(span.base, ())))

    def add(self, span: Span, number: int, error: object) -> None:
        """Records one image of a span.

        Raises:
          UserError: the limit is exceeded. All unreadable images of the span are listed first.
        """
        with self._lock:
            self._add(span, number, reason(error))

    def _add(self, span: Span, number: int, why: str) -> None:
        if self.known(span, np.array([number])).all():
            return
        new = self._source.where(span.base, number) not in self._named
        line, whole = self._note(span, number, why), self._whole(span)
        if self._limit is None:
            raise UserError(line, "Restore it from a copy. `bt-jax prepare` lists every unreadable image.")
        unreadable = self._count(whole)
        if unreadable > allowed(self._limit, whole.stop - whole.start):
            raise self._refusal(whole)
        if new and unreadable <= self.NAMED:
            rest = "; further ones are only listed" if unreadable == self.NAMED else ""
            self._say(f"WARNING: {line}; {self.INSTEAD}{rest}")

    def _whole(self, span: Span) -> Span:
        """The images to which the limit applies."""
        return span

    def _count(self, whole: Span) -> int:
        return sum(whole.start <= number < whole.stop for number in self._found.get(whole.base, ()))

    def _note(self, span: Span, number: int, why: str) -> str:
        """Records a new unreadable image and writes it to the file; returns its line."""
        self._found.setdefault(span.base, set()).add(number)
        where = self._source.where(span.base, number)
        line = f"{where}: the image cannot be read ({why})"
        if where in self._named:
            return line
        self._named.add(where)
        self.lines.append(line)
        if self._file and storage.in_bucket(self._file):
            if self._later is None:  # because each write replaces the whole object
                self._later = threading.Timer(storage.COPY_INTERVAL_SECONDS, self.write_to, [self._file])
                self._later.daemon = True
                self._later.start()
        elif self._file:
            with self._file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{line}\n")
        return line

    def _refusal(self, whole: Span) -> UserError:
        """The error that ends the run. It checks every image of the span first, so that one repair suffices."""
        count = whole.stop - whole.start
        self._say(f"Too many images of split {whole.base!r} cannot be read: checking all {count}")
        with contextlib.suppress(UserError):  # a truncated file of records: the records before the cut are counted
            for image in check_images(self._source, whole):
                if image.reason and not self.known(whole, np.array([image.id])):
                    self._note(whole, image.id, image.reason)
        unreadable = self._count(whole)
        option = f"{self.OPTION}={enough(unreadable, count)}"
        return UserError(
            f"{unreadable} of the {count} images of {self._source.name}, split {whole.base!r}, cannot be read; they are"
            f" listed {self._list_all()}",
            "Restore them from a copy."
            if unreadable == count
            else f"Restore them from a copy, or allow them with {option}.",
        )

    def _list_all(self) -> str:
        """Lists all unreadable images; returns the place of the list."""
        if self._file:
            self.write_to(self._file)
            return f"in {storage.printable(self._file)}"
        for line in self.lines:
            self._say(f"unreadable: {line}")
        return "above"
