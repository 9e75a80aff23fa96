"""A small data set for the tests of sources and splits."""

import numpy as np
import pytest

from bt_jax.data.sources.npz import write_npz
from tests.support.drawn_images import Listed, encode


@pytest.fixture(scope="package")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (23, 8, 6, 3), np.uint8)


@pytest.fixture
def npz(images, tmp_path):
    """A cache file of 23 PNG images, 6 wide and 8 high, with labels 0, 1, 2, 0, ..."""
    path = tmp_path / "cache.npz"
    write_npz(
        Listed([(encode(im), i % 3) for i, im in enumerate(images)], class_names=["a", "b", "c"]), path, ["train"]
    )
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of cached listings."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bt_jax" / "folders"


@pytest.fixture
def root(tmp_path, cache):
    """The path of a new folder whose listing is cached outside the user's cache."""
    return tmp_path / "images"
