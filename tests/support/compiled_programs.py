"""The folder of compiled programs, which all workers and all runs of the tests share."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import jax

from bt_jax import compilers
from bt_jax.selfcheck import comparison

LARGEST = 2**29  # bytes; one run of all tests writes about 20 MB


def folder() -> Path:
    """The folder, below $BT_JAX_TEST_CACHE or else below the user's cache folder.

    Each combination of interpreter, JAX version, compiler flags and kind of processor has its own folder. So no test
    reads a program of another compiler or for another processor.
    """
    compiler = [sys.version, comparison.processor(), jax.__version__, jax.lib.__version__]
    compiler += [os.environ.get("XLA_FLAGS", ""), compilers.state()]
    return _base() / hashlib.sha256("\n".join(compiler).encode()).hexdigest()[:16]


def shrink() -> None:
    """Deletes all of these folders if together they exceed `LARGEST`."""
    base = _base()
    if base.is_dir() and sum(file.stat().st_size for file in base.glob("*/*-cache")) > LARGEST:
        for cache in base.iterdir():
            if len(cache.name) == 16 and cache.is_dir():
                shutil.rmtree(cache, ignore_errors=True)


def _base() -> Path:
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BT_JAX_TEST_CACHE") or Path(user_cache) / "bt_jax" / "tests")
