"""Looking at every image of a split: its size, its label, or why it cannot be read."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, Protocol

from bt_jax.data.sources.decode import cores, try_decode
from bt_jax.data.sources.spans import Span


class Images(Protocol):
    """What is asked of a data set, see `base.Source`."""

    def encoded(self, split: str) -> Iterable[tuple[bytes | Exception, int | None]]: ...


class Looked(NamedTuple):
    """One image: (width, height) and "", or None and the reason why it cannot be read."""

    id: int
    size: tuple[int, int] | None
    reason: str
    label: int | None


def look(source: Images, span: Span) -> Iterator[Looked]:
    """Decodes the images of a span, in the order of their ids."""
    records, number = iter(source.encoded(f"{span.base}[{span.start}:{span.stop}]")), span.start
    with ThreadPoolExecutor(cores()) as pool:
        while chunk := list(islice(records, 256)):
            for (size, reason), (_, label) in zip(pool.map(_look, [data for data, _ in chunk]), chunk, strict=True):
                yield Looked(number, size, reason, label)
                number += 1


def _look(data: bytes | Exception) -> tuple[tuple[int, int] | None, str]:
    found = try_decode(data)  # only its size is kept: 256 images are not in memory at once
    return (None, reason(found)) if isinstance(found, Exception) else (found.shape[1::-1], "")


def reason(error: object) -> str:
    """Why an image cannot be read, in a few words on one line."""
    text = str(getattr(error, "cause", error)).partition("\n")[0].split("<_io")[0]
    text = " ".join(text.split()) or type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode()
