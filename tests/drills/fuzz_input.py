"""Damaged files through the decoder path: no crash, nothing lost, no sample silently duplicated.

    python -m tests.drills.fuzz_input [--files=10000] [--seed=0]

Half of the files are whole. The others are cut, have bytes flipped, overwritten, inserted or removed, or are no image
at all. One epoch of the streaming path must bring every id once; a whole file its own pixels; a damaged one either
pixels or a single black pixel without a label, and then its name in the list.
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
    """Raises AssertionError for anything lost, doubled or altered; returns how many were damaged and unreadable."""
    rng = np.random.default_rng(seed)
    whole = [picture(rng, KINDS[i % len(KINDS)]) for i in range(files)]
    damaged = rng.random(files) < 0.5
    encoded = [damage(rng, data) if bad else data for data, bad in zip(whole, damaged, strict=True)]
    source = Listed([(data, int(bad)) for data, bad in zip(encoded, damaged, strict=True)], name="fuzz")
    said: list[str] = []
    broken = UnreadableImages(source, limit=1, say=said.append)
    batches = train_batches(source, "train", batch_size=BATCH, canvas=CANVAS, seed=seed, broken=broken)
    seen, black = [], []
    for _ in range(files // BATCH):
        batch = next(batches)
        for image, (h, w), label, number in zip(*(batch[k] for k in ("image", "size", "label", "id")), strict=True):
            seen.append(int(number))
            if label == -1:
                black.append(int(number))
                assert (h, w) == (1, 1) and not image.any()
                assert damaged[number], f"whole file {number} was refused"
            else:
                assert label == damaged[number], "another image's label"
            if not damaged[number]:
                np.testing.assert_array_equal(image[:h, :w], decode(encoded[number]))
    assert len(set(seen)) == len(seen) == files // BATCH * BATCH, "an image is missing or came twice"
    assert len(broken.lines) == len(black)
    return {"files": len(seen), "damaged": int(damaged[seen].sum()), "unreadable": len(black)}


def picture(rng: np.random.Generator, kind: str) -> bytes:
    """A small image with some structure."""
    h, w = rng.integers(4, CANVAS + 1, 2)
    pixels = np.kron(rng.integers(0, 256, (h // 4 + 1, w // 4 + 1, 3)), np.ones((4, 4, 1)))[:h, :w].astype(np.uint8)
    return encode(pixels, kind)


def damage(rng: np.random.Generator, data: bytes) -> bytes:
    """One of the ways in which files are found broken."""
    found = np.frombuffer(data, np.uint8).copy()
    place, length = (int(x) for x in rng.integers(0, len(found), 2))
    way = rng.integers(7)
    if way == 0:
        return bytes(found[:place])
    if way == 1:
        found[rng.integers(0, len(found), 1 + length % 8)] ^= np.uint8(1 << rng.integers(0, 8))
    elif way == 2:
        found[place : place + length] = rng.integers(0, 256, len(found[place : place + length]))
    elif way == 3:
        found[place : place + length] = 0
    elif way == 4:
        found = np.insert(found, place, rng.integers(0, 256, 1 + length % 64, np.uint8))
    elif way == 5:
        found = np.delete(found, slice(place, place + 1 + length % 64))
    else:
        return rng.bytes(length)
    return found.tobytes()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(check(files=options.files, seed=options.seed))
    sys.exit(0)
