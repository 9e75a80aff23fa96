"""Checks that a second start in a run folder is the same run: the keys that may differ between the two configs."""

from collections.abc import Sequence

from bt_jax import storage
from bt_jax.config.arguments import RENAMED_KEYS, flatten

# Keys that may change between two starts of a run: paths, devices, intervals and limits, and the end of training.
FREE_KEYS = (
    *("platform", "devices", "self_check", "compile_cache", "data.dir", "data.npz", "model.projector_sharding", "log"),
    *("stop_after_steps", "extend_epochs", "watch", "data.broken_limit", "smoke"),
)
EVALUATION = "evals."  # keys that no weights depend on: they may change until the results are written
PLACES = ("data.dir", "data.npz", "data.folder")  # paths of images; `same_data` compares the images

# Removed keys: {key: (value, reason)}. The code now always uses this value; a run with another one cannot resume.
REMOVED_KEYS = {
    "loss.gather_dtype": ("float32", "embeddings are sent in float32 alone; finish the run with bt_jax 0.1.0"),
}

# Added keys, with the values that older runs had without them.
ADDED_KEYS = {
    "objective.name": "barlow_twins",
    "data.labels": True,
    "optim.by_epoch": False,
    "optim.rate_in_momentum": False,
}

PER_HOST_KEYS = (*PLACES, "compile_cache")  # may differ between the hosts of one run


def with_absolute_paths(config: dict) -> dict:
    """The config with absolute paths to its images, so that later tasks find them from any working folder."""
    data, names = config.get("data", {}), [key.partition(".")[2] for key in PLACES]
    paths = {name: storage.absolute_text(data[name]) for name in names if data.get(name)}
    return config | {"data": data | paths} if paths else config


def differences(old: dict, new: dict, free: Sequence[str] = (), filled: Sequence[str] = ()) -> list[str]:
    """The keys that differ and change the result, as "optim.lr_weights: 0.2 -> 0.3".

    A key of REMOVED_KEYS in `old` differs unless it has the value listed there.

    Args:
      free: keys that may differ besides FREE_KEYS.
      filled: keys that `new` left open and that were filled in. A key with None in `old` was open too and counts as
        equal.
    """
    old, new = {RENAMED_KEYS.get(key, key): value for key, value in flatten(old).items()}, flatten(new)
    if old.get("task") == "pretrain":
        old = ADDED_KEYS | old
    if "data.reader" in new:  # older runs without this key streamed by TensorFlow
        old = {"data.reader": "" if old.get("data.on_device", True) else "tensorflow"} | old
    if "data.exif_orientation" in new:  # older runs without this key did not apply it
        old = {"data.exif_orientation": "ignore"} | old
    removed = {key: old.pop(key) for key in REMOVED_KEYS.keys() & old.keys()}
    moved = old.get("data.folder") and new.get("data.folder")  # a folder may move, but not become a named data set
    free = tuple(f"{key}." for key in (*FREE_KEYS, *free, *["data.folder"] * bool(moved)))
    equal = {key for key in filled if old.get(key, "") is None}
    keys = [key for key in sorted((old.keys() | new.keys()) - equal) if not f"{key}.".startswith(free)]
    missing = "(absent)"
    different = [
        f"{key}: {_shown(old.get(key, missing))} -> {_shown(new.get(key, missing))}"
        for key in keys
        if old.get(key, missing) != new.get(key, missing)
    ]
    for key, value in sorted(removed.items()):
        allowed, reason = REMOVED_KEYS[key]
        different += [] if value == allowed else [f"{key}: {_shown(value)} -> {missing}, {reason}"]
    return different


def _shown(value) -> str:
    """A value in a message; an empty text would look like no value at all."""
    return str(value) or "''"
