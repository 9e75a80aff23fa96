"""Streams damaged image files: no crash, no lost sample, no duplicate.

    python -m tests.drills.fuzz_input [--files=10000] [--seed=0]

Half of the files are intact. The others are cut, have flipped, overwritten, inserted or removed bytes, or are random
bytes. One epoch must give every id once. An intact file must give its own pixels. A damaged file must give pixels, or a
single black pixel without a label and a line in the list of unreadable images.
"""

import argparse
import sys

import numpy as np

from bt_jax.data.pipeline import train_batches
from bt_jax.data.sources.broken import UnreadableImages
from bt_jax.data.sources.decode import decode
from tests.support.drawn_images import Listed, encode

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
CANVAS, BATCH = 32, 50


def check(*, files: int, seed: int) -> dict[str, int]:
    """Counts the damaged and the unreadable files. Raises AssertionError for a lost, duplicate or changed sample."""
    rng = np.random.default_rng(seed)
    intact = [picture(rng, KINDS[i % len(KINDS)]) for i in range(files)]
    damaged = rng.random(files) < 0.5
    encoded = [damage(rng, data) if bad else data for data, bad in zip(intact, damaged, strict=True)]
    source = Listed([(data, int(bad)) for data, bad in zip(encoded, damaged, strict=True)], name="fuzz")
    broken = UnreadableImages(source, limit=1, say=lambda message: None)
    batches = train_batches(source, "train", batch_size=BATCH, canvas=CANVAS, seed=seed, broken=broken)
    seen, black = [], []
    for _ in range(files // BATCH):
        batch = next(batches)
        for image, (h, w), label, number in zip(*(batch[k] for k in ("image", "size", "label", "id")), strict=True):
            seen.append(int(number))
            if label == -1:
                black.append(int(number))
                assert (h, w) == (1, 1) and not image.any()
                assert damaged[number], f"intact file {number} is unreadable"
            else:
                assert label == damaged[number], "the label of another image"
            if not damaged[number]:
                np.testing.assert_array_equal(image[:h, :w], decode(encoded[number]))
    assert len(set(seen)) == len(seen) == files // BATCH * BATCH, "a missing or duplicate image"
    assert len(broken.lines) == len(black)
    return {"files": len(seen), "damaged": int(damaged[seen].sum()), "unreadable": len(black)}


def picture(rng: np.random.Generator, kind: str) -> bytes:
    """A small image with some structure."""
    h, w = rng.integers(4, CANVAS + 1, 2)
    pixels = np.kron(rng.integers(0, 256, (h // 4 + 1, w // 4 + 1, 3)), np.ones((4, 4, 1)))[:h, :w].astype(np.uint8)
    return encode(pixels, kind)


def damage(rng: np.random.Generator, data: bytes) -> bytes:
    """Damages a file in one of seven ways, drawn at random."""
    content = np.frombuffer(data, np.uint8).copy()
    place, length = (int(x) for x in rng.integers(0, len(content), 2))
    way = rng.integers(7)
    if way == 0:
        return bytes(content[:place])
    if way == 1:
        content[rng.integers(0, len(content), 1 + length % 8)] ^= np.uint8(1 << rng.integers(0, 8))
    elif way == 2:
        content[place : place + length] = rng.integers(0, 256, len(content[place : place + length]))
    elif way == 3:
        content[place : place + length] = 0
    elif way == 4:
        content = np.insert(content, place, rng.integers(0, 256, 1 + length % 64, np.uint8))
    elif way == 5:
        content = np.delete(content, slice(place, place + 1 + length % 64))
    else:
        return rng.bytes(length)
    return content.tobytes()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(check(files=options.files, seed=options.seed))
    sys.exit(0)
