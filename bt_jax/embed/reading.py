"""Reads images in the order of their ids, shard by shard: by Pillow if all have one size, otherwise streamed."""

import importlib.util
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bt_jax import storage
from bt_jax.data import pillow_stream, pipeline
from bt_jax.data.sources import orientation
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.broken import UnreadableImages
from bt_jax.data.sources.decode import cores, try_decode
from bt_jax.data.sources.spans import Span
from bt_jax.embed.shard_files import WriteErrors
from bt_jax.messages import UserError


class Shard(NamedTuple):
    """Shard `number` of `total` of a split: the ids of `span`."""

    span: Span
    number: int
    total: int

    @property
    def stem(self) -> str:
        return f"{self.number:05d}-of-{self.total:05d}"


def cut(span: Span, size: int) -> list[Shard]:
    """The shards of a span, of `size` images each; the last one may be smaller."""
    starts = range(span.start, span.stop, size)
    return [
        Shard(Span(span.base, start, min(start + size, span.stop)), number, len(starts))
        for number, start in enumerate(starts)
    ]


def file_names(source: Source, base: str, ids: Iterable[int]) -> list[str]:
    """Paths below the root of a folder of images; SPLIT/ID if images are not files."""
    return [source.file(base, int(number)) for number in ids]


class ImagesWithoutRow(UnreadableImages):
    """The unreadable images, which get no row. The limit applies to all embedded images of a split, not to a shard.

    Args:
      spans: the embedded images, by split.
      limit: share of each span that may be unreadable, see `broken.allowed`; 0: none.
      file: the list of unreadable images, one line each: split, id, file, reason. Its previous lines count too.

    Attributes:
      reasons: {split: {id: (file, reason)}}.
    """

    OPTION, INSTEAD = "--broken_limit", "it gets no row"

    def __init__(self, source: Source, spans: dict[str, Span], *, limit: float, file: Path):
        super().__init__(source, limit=limit)
        self._spans, self._file = spans, file
        self.reasons: dict[str, dict[int, tuple[str, str]]] = {base: {} for base in spans}
        for line in file.read_text("utf-8", "surrogateescape").split("\n") if file.exists() else []:
            base, number, name, reason = (line.split("\t", 3) + [""] * 3)[:4]
            if number.isdigit():
                self.reasons.setdefault(base, {})[int(number)] = name, reason

    def known(self, span, ids):
        return np.isin(ids, list(self.reasons[span.base]))

    def _whole(self, span):
        return self._spans[span.base]

    def _count(self, whole):
        return len(self.reasons[whole.base])

    def _note(self, span, number, why):
        self.reasons[span.base][number] = self._source.file(span.base, number), why
        return f"{self._source.where(span.base, number)}: the image cannot be read ({why})"

    def _list_all(self):
        self.write()
        return f"in {storage.printable(self._file)}"

    def forget(self, span: Span) -> None:
        """Removes the images of a shard that is written again."""
        for number in [number for number in self.reasons[span.base] if span.start <= number < span.stop]:
            del self.reasons[span.base][number]

    def write(self) -> None:
        """Writes the file, or deletes it if there are no unreadable images."""
        lines = [
            f"{base}\t{number}\t{name}\t{reason}\n"
            for base, images in self.reasons.items()
            for number, (name, reason) in sorted(images.items())
        ]
        if lines:
            with WriteErrors(self._file):
                storage.write(self._file, "".join(lines).encode("utf-8", "surrogateescape"))
        else:
            self._file.unlink(missing_ok=True)


class Reading(NamedTuple):
    """The options of reading: batches of `batch_size`, decoded to 3 or 1 channels, streamed ones onto a canvas."""

    source: Source
    unreadable: ImagesWithoutRow
    batch_size: int
    canvas: int
    channels: int


def batches_of(reading: Reading, shards: list[Shard]) -> Iterator[tuple[Shard, dict[str, np.ndarray]]]:
    """Yields (shard, {"image", "mask", "id", "label", and "size" of streamed images}) of all shards in order.

    The last batch of each shard is padded to the batch size.
    """
    for shard in shards:
        size, differ = one_size(reading.source, shard.span)
        if size and max(size) <= reading.canvas:
            batches = array_batches(reading, shard.span, size)
        else:
            reader = pipeline if importlib.util.find_spec("tensorflow") else pillow_stream
            batches = reader.eval_batches(
                reading.source,
                _slice(shard.span),
                batch_size=reading.batch_size,
                canvas=reading.canvas,
                broken=reading.unreadable,
                channels=reading.channels,
            )
        for batch in batches:
            yield shard, batch


def _slice(span: Span) -> str:
    return f"{span.base}[{span.start}:{span.stop}]"


def one_size(source: Source, span: Span) -> tuple[tuple[int, int] | None, str]:
    """((height, width), "") if the headers of all readable images of a span agree; otherwise (None, an example)."""
    size, first_id = None, 0
    # In most data sets of photographs the first few images differ, so the whole span need not be read.
    few = min(span.start + 16, span.stop)
    for part in (span._replace(stop=few), span._replace(start=few)):
        if part.start == part.stop:
            continue
        for number, (data, _) in enumerate(source.encoded(_slice(part)), part.start):
            header = _header(data, upright=source.upright)
            if size is None:
                size, first_id = header, number
            if header not in (None, size):
                h, w = header
                return None, f"differ in size (id {first_id} is {size[1]}x{size[0]}, id {number} is {w}x{h})"
    return size or (1, 1), ""


def _header(data: bytes | UserError, *, upright: bool) -> tuple[int, int] | None:
    """(height, width) of an encoded image, turned if it is to be `upright`; None if its header is unreadable."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            height, width = image.height, image.width
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, its own ...
        return None
    exchanged = upright and orientation.of_encoded(data) in orientation.EXCHANGED
    return (width, height) if exchanged else (height, width)


def array_batches(reading: Reading, span: Span, size: tuple[int, int]) -> Iterator[dict[str, np.ndarray]]:
    """Like `pipeline.eval_batches`, without canvas and "size", for images of one size (height, width)."""
    records, start = reading.source.encoded(_slice(span)), span.start
    decoder = partial(try_decode, channels=reading.channels, upright=reading.source.upright)
    with ThreadPoolExecutor(cores()) as pool:
        while chunk := list(islice(records, reading.batch_size)):
            image = np.zeros((reading.batch_size, *size, reading.channels), np.uint8)
            mask = np.arange(reading.batch_size) < len(chunk)
            label = np.full(reading.batch_size, -1, np.int32)
            for row, pixels in enumerate(pool.map(decoder, [data for data, _ in chunk])):
                if not isinstance(pixels, Exception) and pixels.shape[:2] != size:
                    pixels = ValueError("its header has another size than its pixels")
                if isinstance(pixels, Exception):
                    reading.unreadable.add(span, start + row, pixels)
                    mask[row] = False
                    continue
                image[row] = pixels
                label[row] = -1 if chunk[row][1] is None else chunk[row][1]
            yield {"image": image, "mask": mask, "label": label, "id": start + np.arange(reading.batch_size)}
            start += len(chunk)
