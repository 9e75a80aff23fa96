"""The embedded data set: ten families of patterns that the package draws, so that a first run needs no download.

Within a family, spacing, tilt, position, the two colours, their brightness, shading and noise are random. So the pixels
of two images of one family have little in common: they share only the way in which the pattern repeats. Two crops of
one image share the same property, which Barlow Twins therefore learns. Images are a function of (split, index) alone,
the same on every machine.
"""

import functools
import io

import numpy as np
from PIL import Image

from bt_jax.data.sources.base import Source
from bt_jax.data.sources.spans import Arrays

SIZE = 32
CLASSES = ("stripes", "checks", "dots", "rings", "triangles", "bricks", "zigzag", "grid", "blobs", "spokes")
COUNTS = {"train": 10_000, "test": 2_000}


@functools.cache
def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images of "train" or "test": uint8 (n, 32, 32, 3) and labels int32 (n,), drawn once and read-only."""
    count = COUNTS[split]
    labels = np.arange(count, dtype=np.int32) % len(CLASSES)
    images = [
        _image(CLASSES[label], np.random.default_rng([2103, 3230, list(COUNTS).index(split), i]))
        for i, label in enumerate(labels)
    ]
    arrays = np.stack(images), labels
    for array in arrays:
        array.flags.writeable = False
    return arrays


def _image(family: str, rng: np.random.Generator) -> np.ndarray:
    """uint8 (32, 32, 3): the pattern mixes two colours; shade and noise are added."""
    mix = _PATTERNS[family](*_plane(rng), rng)[..., None]
    colours = _two_colours(rng)
    image = mix * colours[0] + (1 - mix) * colours[1]
    slope = rng.uniform(-0.15, 0.15, 2) @ np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j].reshape(2, -1)
    image = image + slope.reshape(SIZE, SIZE, 1) + rng.normal(0, 0.04, image.shape)
    return np.uint8(np.clip(255 * image, 0, 255))


def _plane(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x and y of every pixel, (32, 32) each, in periods of the pattern, with random tilt and shift."""
    angle, period = rng.uniform(-0.7, 0.7), rng.uniform(6, 10)
    rows, columns = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    x = (np.cos(angle) * columns + np.sin(angle) * rows) / period + rng.uniform(-2, 2)
    y = (-np.sin(angle) * columns + np.cos(angle) * rows) / period + rng.uniform(-2, 2)
    return x, y


def _two_colours(rng: np.random.Generator) -> np.ndarray:
    """Two colours (2, 3) in [0, 1], one bright and one dark, in either order."""
    dark, bright = rng.uniform(0.05, 0.4), rng.uniform(0.6, 0.95)
    return np.clip([[bright], [dark]] + rng.uniform(-0.2, 0.2, (2, 3)), 0, 1)[:: rng.choice([-1, 1])]


def _soft(x: np.ndarray, width: float = 0.15) -> np.ndarray:
    """A step from 0 to 1 around x = 0, without jagged edges."""
    return 1 / (1 + np.exp(-np.clip(x / width * 4, -30, 30)))


def _wave(x):
    return np.sin(2 * np.pi * x)


def _saw(x):
    return np.abs(2 * (x % 1) - 1)


def _blobs(x, y, rng):
    waves = rng.normal(0, 0.8, (12, 2))
    field = sum(np.cos(2 * np.pi * (a * x + b * y) + p) for (a, b), p in zip(waves, rng.uniform(0, 7, 12), strict=True))
    return _soft(field, 1.5)


_PATTERNS = {
    "stripes": lambda x, y, rng: _soft(_wave(x), 0.8),
    "checks": lambda x, y, rng: _soft(_wave(x / 1.4) * _wave(y / 1.4), 0.4),
    "dots": lambda x, y, rng: _soft(0.3 - np.hypot(x % 1 - 0.5, y % 1 - 0.5)),
    "rings": lambda x, y, rng: _soft(_wave(np.hypot(x, y)), 0.8),
    "triangles": lambda x, y, rng: _soft(_wave(x) + _wave(-x / 2 + y * 0.866) + _wave(-x / 2 - y * 0.866), 1.0),
    "bricks": lambda x, y, rng: _soft(np.maximum(_saw(y), _saw(x / 2 + 0.5 * (np.floor(y + 0.5) % 2))) - 0.75, 0.2),
    "zigzag": lambda x, y, rng: _soft(_wave(x + 0.9 * _saw(y / 1.5)), 0.8),
    "grid": lambda x, y, rng: _soft(np.maximum(_saw(x), _saw(y)) - 0.75, 0.2),
    "blobs": _blobs,
    "spokes": lambda x, y, rng: _soft(_wave(np.arctan2(y, x) * 5 / np.pi), 0.8),
}


class PatternsSource(Source):
    """The data set inside the package, which needs neither a file nor a network."""

    def __init__(self):
        self.name = "patterns"
        self._arrays = {split: load(split) for split in ("train", "test")}
        self.splits = {split: len(images) for split, (images, _) in self._arrays.items()}
        self.class_names = list(CLASSES)
        self.num_classes = len(self.class_names)

    def labels_at_hand(self, base):
        return self._arrays[base][1]

    def _forget_labels(self):
        self._arrays = {split: (images, None) for split, (images, _) in self._arrays.items()}

    def read(self, base, ids):
        images, labels = self._arrays[base]
        return [(_png(images[i]), None if labels is None else int(labels[i])) for i in ids]

    def arrays(self, split, broken=None, *, channels=3):
        if channels != 3:
            return super().arrays(split, broken, channels=channels)
        span = self.span(split)
        images, labels = self._arrays[span.base]
        rows = slice(span.start, span.stop)
        return Arrays(images[rows], None if labels is None else labels[rows].astype(np.int32))


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
