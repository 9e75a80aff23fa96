"""How long compilation takes.

A file in the user's cache keeps how long each training step took to compile. The next run announces that time. A
program that JAX read from its cache of compiled programs leaves the file as it is. `so_far` is the time of all
compilations of this process.
"""

import contextlib
import hashlib
import json
import threading

import jax

from bt_jax import storage
from bt_jax.config import arguments
from bt_jax.config.sections import Run

NAME = "compile_seconds.json"
MOST = 200  # entries; the oldest are dropped
# jax/_src/dispatch.py: the stages of every compilation; the last has a read of JAX's cache too
STAGES = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")
READ = "/jax/compilation_cache/cache_hits"  # jax/_src/compiler.py: a program was read from the cache, not compiled

_lock, _total = threading.Lock(), {"seconds": 0.0, "read": 0}


def key(settings: Run) -> str:
    """A digest of what the program depends on: sizes, network, method, optimizer, devices, version of JAX."""
    config = arguments.to_dict(settings)
    parts = [config.get(name) for name in ("task", "batch_size", "views", "model", "objective", "optim", "train")]
    devices = jax.devices()
    parts += [devices[0].device_kind, len(devices), jax.__version__, config["data"]["canvas"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def expected(key: str) -> float | None:
    """The seconds of the last compilation; None if there was none."""
    return _read().get(key)


def remember(key: str, seconds: float) -> None:
    """Keeps the seconds for the next start, if the cache can be written."""
    times = _read()
    times.pop(key, None)
    times[key] = round(seconds, 1)
    with contextlib.suppress(OSError):
        storage.make(storage.user_cache())
        storage.write_json(storage.user_cache() / NAME, dict(list(times.items())[-MOST:]))


def so_far() -> float:
    """Seconds that this process has spent in the compiler since this module was imported."""
    return _total["seconds"]


def programs_read() -> int:
    """Number of programs that this process has read from JAX's cache since this module was imported."""
    return int(_total["read"])


def _add(stage: str, seconds: float, **_: object) -> None:
    if stage in STAGES:
        with _lock:
            _total["seconds"] += seconds


def _count(event: str, **_: object) -> None:
    if event == READ:
        with _lock:
            _total["read"] += 1


jax.monitoring.register_event_duration_secs_listener(_add)
jax.monitoring.register_event_listener(_count)


def _read() -> dict[str, float]:
    try:
        found = storage.read_json(storage.user_cache() / NAME)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
