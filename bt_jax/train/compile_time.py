"""The time that a step took to compile on this machine, kept in the user's cache to announce the next wait."""

import contextlib
import hashlib
import json

import jax

from bt_jax import storage
from bt_jax.config import arguments
from bt_jax.config.sections import Run

NAME = "compile_seconds.json"
MOST = 200  # entries; the oldest are dropped


def key(settings: Run) -> str:
    """A digest of what the program depends on: sizes, network, method, optimizer, devices, version of JAX."""
    config = arguments.to_dict(settings)
    parts = [config.get(name) for name in ("task", "batch_size", "views", "model", "objective", "optim", "train")]
    devices = jax.devices()
    parts += [devices[0].device_kind, len(devices), jax.__version__, config["data"]["canvas"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def expected(key: str) -> float | None:
    """The seconds of the last time; None if there was none."""
    return _read().get(key)


def remember(key: str, seconds: float) -> None:
    """Keeps the seconds for the next start, if the cache can be written."""
    times = _read()
    times.pop(key, None)
    times[key] = round(seconds, 1)
    with contextlib.suppress(OSError):
        storage.make(storage.user_cache())
        storage.write_json(storage.user_cache() / NAME, dict(list(times.items())[-MOST:]))


def _read() -> dict[str, float]:
    try:
        found = storage.read_json(storage.user_cache() / NAME)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
