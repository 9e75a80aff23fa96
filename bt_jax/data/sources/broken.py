"""Images that cannot be read: named, counted, and too many of them an error."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from bt_jax import storage
from bt_jax.data.sources.spans import Span
from bt_jax.messages import UserError


class Owner(Protocol):
    """What is asked of the data set whose images they are, see `base.Source`."""

    name: str

    def where(self, base: str, number: int) -> str: ...


class Broken:
    """Images that cannot be read: each is named once, and too many of them end the run.

    Args:
      source: theirs.
      limit: share of the images of a split, or of the slice in use, that may be unreadable; 0: the first one is an
        error.
      say: prints a line.

    Attributes:
      lines: list of str, one for each image found so far.
    """

    NAMED = 20  # on the terminal; the file names all

    def __init__(self, source: Owner, *, limit: float = 0.0, say: Callable[[str], None] = print):
        self._source, self._limit, self._say = source, limit, say
        self._found: dict[str, set[int]] = {}
        self.lines: list[str] = []
        self._file: Path | None = None
        self._later: threading.Timer | None = None

    def list_in(self, file: Path) -> None:
        """From now on all of them stand in this file, a line each, also those found before."""
        self._file, self._later = file, None
        if self.lines:
            storage.write(file, "".join(f"{line}\n" for line in self.lines))

    def known(self, span: Span, ids: np.ndarray) -> np.ndarray:
        """bool, shaped as `ids`: those that have been added."""
        return np.isin(ids, list(self._found.get(span.base, ())))

    def add(self, span: Span, number: int, reason: object) -> None:
        """Notes one image of a span. UserError past the limit, or at once without one."""
        found, count = self._found.setdefault(span.base, set()), span.stop - span.start
        if number in found:
            return
        found.add(number)
        reason = str(reason).partition("\n")[0].split("<_io")[0].strip()
        line = f"{self._source.where(span.base, number)}: the image cannot be read ({reason})"
        self.lines.append(line)
        if self._file and storage.in_bucket(self._file):
            if self._later is None:  # an object takes one write a second, and each writes all of it
                self._later = threading.Timer(storage.SECONDS, self.list_in, [self._file])
                self._later.daemon = True
                self._later.start()
        elif self._file:
            with self._file.open("a") as file:
                file.write(f"{line}\n")
        unreadable = sum(span.start <= number < span.stop for number in found)
        if unreadable > self._limit * count:
            cure = "Restore it from its origin; `python -m bt_jax.prepare` lists every unreadable image"
            if not self._limit:
                raise UserError(line, cure)
            listed = f", listed in {self._file}" if self._file else ""
            raise UserError(
                f"{unreadable} of the {count} images of {self._source.name}, split {span.base!r}, cannot be read"
                f"{listed}; the last: {line}",
                "Restore them, or allow more with --config.data.broken_limit",
            )
        if len(found) <= self.NAMED:
            rest = "; further ones are only listed" if len(found) == self.NAMED else ""
            self._say(f"WARNING: {line}; a black one stands in for it{rest}")
