"""Checks every image of a split: its size and label, or the reason why it is unreadable."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple, Protocol

from bt_jax.data.sources.decode import cores, try_decode
from bt_jax.data.sources.spans import Span


class Images(Protocol):
    """The part of `base.Source` that `check_images` needs."""

    upright: bool

    def encoded(self, split: str) -> Iterable[tuple[bytes | Exception, int | None]]: ...


class CheckedImage(NamedTuple):
    """One image: size (width, height) and reason "", or size None and the reason why it is unreadable."""

    id: int
    size: tuple[int, int] | None
    reason: str
    label: int | None


def check_images(source: Images, span: Span) -> Iterator[CheckedImage]:
    """Decodes the images of a span, in the order of their ids."""
    records, number = iter(source.encoded(f"{span.base}[{span.start}:{span.stop}]")), span.start
    with ThreadPoolExecutor(cores()) as pool:
        while chunk := list(islice(records, 256)):
            for (size, reason), (_, label) in zip(
                pool.map(partial(_check_image, upright=source.upright), [data for data, _ in chunk]), chunk, strict=True
            ):
                yield CheckedImage(number, size, reason, label)
                number += 1


def _check_image(data: bytes | Exception, *, upright: bool) -> tuple[tuple[int, int] | None, str]:
    image = try_decode(data, upright=upright)  # dropped here, so that 256 images are never in memory at once
    return (None, reason(image)) if isinstance(image, Exception) else (image.shape[1::-1], "")


def reason(error: object) -> str:
    """The reason why an image is unreadable, in a few words on one line."""
    text = str(getattr(error, "cause", error)).partition("\n")[0].split("<_io")[0]
    text = " ".join(text.split()) or type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode()
