"""Suffixes of images: those that the installed Pillow decodes."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, features

from bt_jax.data.sources import decode, formats
from bt_jax.data.sources.image_folder import FolderSource


@pytest.fixture
def fresh(monkeypatch):
    """Clears the cache of suffixes."""
    for function in (formats.suffixes, formats.add_plugins):
        monkeypatch.setattr(formats, function.__name__, function.__wrapped__)


def test_every_suffix_that_pillow_writes_and_reads_is_an_image():
    """Except formats whose pixels have no range. Formats that Pillow cannot decode alone are not images."""
    Image.init()
    picture = Image.fromarray(np.full((16, 16, 3), 90, np.uint8))
    written = set()
    for suffix, kind in Image.registered_extensions().items():
        buffer = io.BytesIO()
        try:
            picture.save(buffer, kind)
            decode.decode(buffer.getvalue())
        except Exception:  # Pillow does not write them, or not in colour
            continue
        written.add(suffix)
    assert len(written) > 20 and written - formats.suffixes() == {".pfm"}  # written as a PPM file
    assert {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".tif", ".webp", ".bmp", ".gif"} <= formats.suffixes()
    assert formats.suffixes() & {".eps", ".pdf", ".mpg", ".h5", ".wmf", ".fits", ".pfm", ".pcd", ".txt"} == set()


def test_a_format_without_its_library_is_left_out(monkeypatch, fresh):
    check = features.check
    monkeypatch.setattr(features, "check", lambda name: name != "webp" and check(name))
    assert ".webp" not in formats.suffixes() and ".png" in formats.suffixes()
    assert "1 image that the installed Pillow cannot decode (1 .webp)" in formats.left_out({".webp": 1, ".txt": 1})


@pytest.mark.parametrize("works", [True, False])
def test_an_installed_plugin_adds_its_formats(monkeypatch, fresh, works):
    def register():
        if not works:
            raise RuntimeError("made for another Pillow")
        Image.register_open("HEIF", None)
        Image.register_extension("HEIF", ".heic")

    for table in ("OPEN", "EXTENSION", "ID"):
        monkeypatch.setattr(Image, table, type(getattr(Image, table))(getattr(Image, table)))
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    assert (".heic" in formats.suffixes()) == works


def test_one_picture_in_three_formats(root):
    """Suffixes in any case count, even if they do not match the format."""
    root.mkdir()
    picture = Image.fromarray(np.full((16, 16, 3), 90, np.uint8))
    picture.save(root / "a.jfif", "JPEG")
    picture.save(root / "b.TGA", "TGA")
    picture.save(root / "c.jpg", "PNG")
    source = FolderSource(root)
    assert source.splits == {"train": 3} and source.notes == []
    assert np.abs(source.arrays("train").images.astype(int) - 90).max() <= 1
