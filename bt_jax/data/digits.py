"""The embedded data set: real handwritten digits, scattered over coloured scenes, so that a first run needs no download.

The handwriting is scikit-learn's copy of the UCI optical digits' test part (1,797 images of 8x8 pixels by 13 people,
shipped inside the package). Each is drawn several times on a 32x32 canvas: place, size, tilt, colours and a shaded background vary.
Nearest neighbours in pixels then find the same colours rather than the same digit, which is what makes learning visible.
Held-out images are drawn from digits that no training image is drawn from.
"""

import numpy as np
from PIL import Image

SIZE = 32
CLASSES = tuple("0123456789")
# (first source digit, end, drawings of each); the last fifth is held out
SPLITS = {"train": (0, 1437, 8), "test": (1437, 1797, 5)}
COUNTS = {split: (end - start) * copies for split, (start, end, copies) in SPLITS.items()}


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images of "train" or "test": uint8 (n, 32, 32, 3) and labels int32 (n,); always the same ones."""
    from sklearn.datasets import load_digits  # imported here: scikit-learn takes a second to load

    start, end, copies = SPLITS[split]
    digits = load_digits()
    strokes, labels = digits.images[start:end], digits.target[start:end]
    rng = np.random.default_rng([2103, 3230, start])
    images = [_draw(stroke / 16, rng) for stroke in strokes for _ in range(copies)]
    return np.stack(images), np.repeat(labels, copies).astype(np.int32)


def _draw(stroke: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One 8x8 stroke image, [0, 1], on a canvas of its own: uint8 (32, 32, 3)."""
    size = int(rng.integers(18, 27))
    mask = Image.fromarray(np.uint8(255 * stroke)).resize((size, size), Image.Resampling.BICUBIC)
    mask = mask.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC)
    alpha = np.zeros((SIZE, SIZE))
    top, left = rng.integers(0, SIZE - size + 1, 2)
    alpha[top : top + size, left : left + size] = np.clip(np.asarray(mask) / 255 * 1.3, 0, 1)
    ink, paper = _two_colours(rng)
    scene = paper + _shade(rng)[..., None] * rng.uniform(0.5, 1, 3)
    image = alpha[..., None] * ink + (1 - alpha[..., None]) * scene + rng.normal(0, 0.02, (SIZE, SIZE, 3))
    return np.uint8(np.clip(255 * image, 0, 255))


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two random colours whose brightness differs enough to read, either one the brighter."""
    while True:
        ink, paper = rng.uniform(0.05, 0.95, (2, 3))
        if abs(ink.mean() - paper.mean()) > 0.25:
            return ink, paper


def _shade(rng: np.random.Generator) -> np.ndarray:
    """A smooth random field, about -0.15 to 0.15: (32, 32)."""
    coarse = Image.fromarray(rng.normal(0, 1, (4, 4)).astype(np.float32))
    return 0.1 * np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
