"""Opening the folder of a run: made, or accepted as the same run's; and what its files say."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from bt_jax import messages, storage
from bt_jax.config import arguments
from bt_jax.messages import UserError
from bt_jax.processes import coordination, join
from bt_jax.run_folder import checkpoint_paths, environment, lock, same_data, same_run


def check_folder(path: str, task: str) -> Path:
    """The folder as an absolute path; makes nothing.

    Raises:
      UserError: another process holds it, or the task would write checkpoints that cannot be kept there.
    """
    folder = storage.absolute(storage.parse_path(path))
    if task != "evaluate":
        checkpoint_paths.check(folder)
    lock.check_free(folder)
    return folder


def open_folder(path: str, config: dict, images: same_data.Images | None = None, *, free: Sequence[str] = ()) -> Path:
    """Makes the folder, or accepts one that holds the same run; writes config.json, data.json and environment.json.

    This process holds the folder until `lock.release`.

    Args:
      config: of `config.arguments.to_dict`.
      images: of the run.
      free: keys that may differ from those of the first start, besides `same_run.FREE_KEYS`.

    Raises:
      UserError: the folder cannot be made, is held by another process, or holds a run with another config or on other
        images: the differences are named.
    """
    config = same_run.with_absolute_paths(config)
    folder = check_folder(path, config.get("task", ""))
    try:
        storage.make(folder)
    except OSError as error:
        raise UserError(
            f"The work folder {folder} cannot be made: {error.strerror}", "Give another --workdir."
        ) from None
    if storage.in_bucket(folder):
        storage.check_bucket_access(folder)
    join.check_shared(folder)
    lock.hold(folder)
    file = folder / "config.json"
    if file.exists():
        old = _read(file)
        different = same_run.differences(old, config, free)
        if different:
            raise UserError(
                f"{folder} holds a run with another config ({'; '.join(different)})",
                "Give another --workdir, or the config of that run to go on with it.",
            )
        _say_longer(old, config)
    data = same_data.check(folder, images, started_before=file.exists()) if images else None
    coordination.gather(None, barrier="the look at the run folder")  # all have read before it is written
    if jax.process_index() == 0:
        if data:  # first: a run with a config and without it is one of bt_jax 0.1.0
            storage.write_json(folder / same_data.NAME, data)
        storage.write_json(file, config)
        storage.write_json(folder / "environment.json", environment.describe())
    return folder


def check_same_run(config: ConfigDict, **facts: Any) -> None:
    """In a multi-process run, compares config, versions and `facts` with those of process 0.

    Paths of data and compiled programs may differ: every host can have its own copy.

    Raises:
      UserError: they differ, see `join.check_identical`.
    """
    if coordination.is_multi_process():
        flat = arguments.flatten(arguments.to_dict(config))
        own = {f"config.{key}": value for key, value in flat.items() if key not in same_run.PER_HOST_KEYS}
        join.check_identical(
            own
            | facts
            | environment.versions()
            | {"python": platform.python_version(), "bt_jax": environment.git_commit()}
        )


def _say_longer(old: dict, new: dict) -> None:
    before, after = (config["total_epochs"] + config.get("extend_epochs", 0) for config in (old, new))
    if after < before:
        raise UserError(
            f"The run was made {before:g} epochs long, and extend_epochs={new['extend_epochs']:g} asks for {after:g}",
            f"Set --config.extend_epochs={before - new['total_epochs']:g}, or more.",
        )
    if after > before:
        messages.say(
            f"schedule made longer: {before:g} -> {after:g} epochs; the rates from here on are the longer one's"
        )


def per_process_file(folder: Path, name: str) -> Path:
    """A file of this process's own: "broken.txt", or of several processes "broken-3.txt"."""
    stem, dot, suffix = name.partition(".")
    return folder / (f"{stem}-{jax.process_index()}{dot}{suffix}" if jax.process_count() > 1 else name)


def read_run_json(step_folder: Path, name: str) -> dict:
    """RUN/name, a JSON file, for RUN/checkpoints/STEP; {} for a checkpoint that is in no run, or a file of weights."""
    if step_folder.parent.name != "checkpoints":
        return {}
    try:
        return storage.read_json(step_folder.parents[1] / name) or {}
    except ValueError:
        return {}


def _read(file: Path) -> dict:
    fix = "Delete it if the folder is yours to use, or give another --workdir."
    try:
        found = storage.read_json(file)
    except ValueError:
        raise UserError(f"{file} is damaged", fix) from None
    if found is None:
        raise UserError(f"{file} cannot be read", fix)
    return found
