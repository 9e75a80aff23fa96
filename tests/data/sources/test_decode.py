"""Both decoders turn gray of any depth and format into the same 8 bits, and read very large images."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from bt_jax.data.sources import checking, decode
from bt_jax.data.sources.spans import Span
from tests.support.drawn_images import Listed, encode

SIDE = 8
DEEP = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)  # one ramp, 16 bits
UPPER = (DEEP >> 8).astype(np.uint8)


def tiff(pixels: bytes, bits: int, *, order: str = "<", sign: int = 1, white_is_zero: bool = False) -> bytes:
    """A gray TIFF file of SIDE x SIDE, uncompressed; TIFF 6.0, section 2. `sign`: 1 without, 2 with, 3 floats."""
    values = {256: SIDE, 257: SIDE, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: SIDE}
    values |= {279: len(pixels), 339: sign}
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(pixels))
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in values.items())
    return head + pixels + struct.pack(f"{order}H", len(values)) + entries + struct.pack(f"{order}I", 0)


def of_12_bits() -> bytes:
    bits = "".join(f"{value >> 4:012b}" for value in DEEP.ravel())
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def pgm(largest: int, magic: str = "P5") -> bytes:
    values = np.round(DEEP / 65535 * largest).astype(">u2")
    data = values.tobytes() if magic == "P5" else " ".join(map(str, values.ravel())).encode()
    return f"{magic}\n{SIDE} {SIDE}\n{largest}\n".encode() + data


def saved(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(DEEP).save(buffer, kind)
    return buffer.getvalue()


GRAY = {
    "PNG": saved("PNG"),
    "TIFF by Pillow": saved("TIFF"),
    "JPEG 2000": saved("JPEG2000"),
    "TIFF little endian": tiff(DEEP.astype("<u2").tobytes(), 16),
    "TIFF big endian": tiff(DEEP.astype(">u2").tobytes(), 16, order=">"),
    "TIFF of 12 bits": tiff(of_12_bits(), 12),
    "TIFF, white is 0": tiff((65535 - DEEP).astype("<u2").tobytes(), 16, white_is_zero=True),
    "TIFF of 8 bits, white is 0": tiff((255 - UPPER).tobytes(), 8, white_is_zero=True),
    "PGM of 16 bits": pgm(65535),
    "PGM in letters": pgm(65535, "P2"),
}
UNKNOWN = {
    "TIFF with a sign": tiff(DEEP.astype("<u2").tobytes(), 16, sign=2),
    "TIFF of 32 bits": tiff(DEEP.astype("<u4").tobytes(), 32),
    "TIFF of 32 bits with a sign": tiff(DEEP.astype(">i4").tobytes(), 32, order=">", sign=2),
    "TIFF of floats": tiff(DEEP.astype("<f4").tobytes(), 32, sign=3),
    "PFM": b"Pf\n%d %d\n-1.0\n" % (SIDE, SIDE) + DEEP.astype("<f4").tobytes(),
}


def streamed(data: bytes, canvas: int, channels: int = 3) -> np.ndarray:
    """Decodes an image as a stream does: by TensorFlow, or by Pillow within TensorFlow."""
    pytest.importorskip("tensorflow")
    from bt_jax.data import tf_decode
    from bt_jax.data.sources.tfds import tensorflow

    image, _ = tf_decode.fit(tensorflow().constant(data), canvas, channels)
    return image.numpy()


@pytest.mark.parametrize("kind", GRAY)
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_gray_keeps_its_upper_eight_bits(kind, channels):
    found = decode.decode(GRAY[kind], channels)
    np.testing.assert_array_equal(found, np.repeat(UPPER[..., None], channels, -1))
    np.testing.assert_array_equal(streamed(GRAY[kind], SIDE, channels), found)


@pytest.mark.parametrize("bits", range(9, 17))
def test_pgm_of_9_to_16_bits(bits):
    """Pillow scales them to 16 bits by rounding."""
    found = decode.decode(pgm(2**bits - 1), 1)[..., 0].astype(int)
    assert np.abs(found - DEEP / 65535 * 255).max() <= 1 and (found[0, 0], found[-1, -1]) == (0, 255)
    np.testing.assert_array_equal(streamed(pgm(2**bits - 1), SIDE, 1)[..., 0], found)


@pytest.mark.parametrize("kind", UNKNOWN)
def test_gray_of_unknown_range_cannot_be_read(kind):
    (looked,) = checking.check_images(Listed([(UNKNOWN[kind], 0)]), Span("train", 0, 1))
    assert looked.size is None and "range is unknown" in looked.reason
    with pytest.raises(Exception, match="Pillow cannot read it"):
        streamed(UNKNOWN[kind], SIDE)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "GIF", "BMP"])
def test_very_large_images_are_read_by_both_decoders(kind, monkeypatch):
    """The test removes Pillow's limits, which are too large to decode here, and lowers ours."""
    assert Image.MAX_IMAGE_PIXELS is None and decode.LARGEST > 2 * 179_000_000
    monkeypatch.setattr(decode, "LARGEST", 40 * 30)
    fits, larger = (np.full((side, 30), 90, np.uint8) for side in (40, 41))
    data = encode(fits, kind)
    assert decode.decode(data).shape == (40, 30, 3) and streamed(data, 20).shape == (20, 15, 3)
    found = decode.try_decode(encode(larger, kind))
    assert str(found) == "it has 30x41 pixels, more than 1,200"
    if kind != "PNG":  # TensorFlow has the same limit
        with pytest.raises(Exception, match="Pillow cannot read it"):
            streamed(encode(larger, kind), 20)


def test_pillow_decodes_a_jpeg_that_is_too_large_for_tensorflow(monkeypatch):
    pytest.importorskip("tensorflow")
    from bt_jax.data import tf_decode

    data = encode(np.full((64, 48), 90, np.uint8), "JPEG")
    asked, decoder = [], decode.try_decode
    monkeypatch.setattr(decode, "try_decode", lambda *args: asked.append(args) or decoder(*args))
    for limit, canvas, by_pillow in ((64 * 48, 64, 0), (64 * 48 - 1, 64, 1), (64 * 48 - 1, 32, 0), (767, 32, 1)):
        monkeypatch.setattr(tf_decode, "JPEG_PIXELS", limit)
        asked.clear()
        assert streamed(data, canvas).shape == (canvas, canvas * 3 // 4, 3) and len(asked) == by_pillow
