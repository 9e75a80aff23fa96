"""The folder of compiled programs that the tests share, from worker to worker and from run to run."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import jax

from bt_jax import compilers
from bt_jax.selfcheck import comparison

LARGEST = 2**29  # bytes; a whole run of the tests leaves some 20 MB


def folder() -> Path:
    """Below $BT_JAX_TEST_CACHE, else below the user's cache folder.

    Every interpreter, JAX, set of compiler flags and kind of processor has a folder of its own: no test reads a program
    that another compiler made, or that was made for another processor.
    """
    made_by = [sys.version, comparison.processor(), jax.__version__, jax.lib.__version__]
    made_by += [os.environ.get("XLA_FLAGS", ""), compilers.state()]
    return _base() / hashlib.sha256("\n".join(made_by).encode()).hexdigest()[:16]


def shrink() -> None:
    """Deletes all of these folders if together they are larger than anybody would want."""
    base = _base()
    if base.is_dir() and sum(file.stat().st_size for file in base.glob("*/*-cache")) > LARGEST:
        for own in base.iterdir():
            if len(own.name) == 16 and own.is_dir():
                shutil.rmtree(own, ignore_errors=True)


def _base() -> Path:
    own = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BT_JAX_TEST_CACHE") or Path(own) / "bt_jax" / "tests")
