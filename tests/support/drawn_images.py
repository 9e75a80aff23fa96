"""Images that a test draws: as encoded bytes, as a source in memory, as a folder of files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from bt_jax.data.sources.base import Source


def encode(image: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    """Encodes an image, uint8 (h, w, 3) or (h, w), after its conversion to Pillow's `mode` (None: no conversion)."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(buffer, kind)
    return buffer.getvalue()


def write_images(root: Path, *paths: str) -> None:
    """PNG images of 8 pixels at these paths, whatever their suffix, the i-th filled with i."""
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encode(np.full((8, 8, 3), i, np.uint8)))


class Listed(Source):
    """A source of records in memory, each (encoded image, label or None)."""

    def __init__(self, records, name="listed", class_names=()):
        self.name, self.splits, self.records, self.class_names = name, {"train": len(records)}, records, class_names
        labels = [label for _, label in records if label is not None]
        self.num_classes = 1 + max(labels) if labels else 0

    def read(self, base, ids):
        return [self.records[i] for i in ids]


class Counted(Listed):
    """A `Listed` that records its reads.

    Attributes:
      asked: the ids of all reads, in their order.
    """

    def __init__(self, records):
        super().__init__(records)
        self.asked: list[int] = []

    def read(self, base, ids):
        self.asked.extend(ids)
        return super().read(base, ids)


def draw_folder(folder: Path) -> Path:
    """Writes PNG files of noise, 24 x 24 pixels: 64 in "train" and 16 in "val", in two classes; returns the folder."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 8)):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (24, 24, 3), np.uint8)
                (folder / split / label / f"{index}.png").write_bytes(encode(pixels))
    return folder
