"""Opens a run folder: makes a new one, or accepts one that holds the same run. Reads its JSON files."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from bt_jax import messages, storage
from bt_jax.config import arguments
from bt_jax.messages import UserError, counted
from bt_jax.processes import coordination, join
from bt_jax.run_folder import checkpoint_paths, environment, lock, same_data, same_run

RUN_OF = {"pretrain": "a pretraining run", "evaluate": "an evaluation", "finetune": "a fine-tuning run"}  # by task
LISTED = 5  # a message lists at most this many differing keys


def check_folder(path: str, task: str) -> Path:
    """Returns the folder as an absolute path; makes nothing.

    Raises:
      UserError: it is a file, another process holds it, or the task writes checkpoints and the path cannot hold them.
    """
    folder = storage.absolute(storage.parse_path(path))
    if not storage.in_bucket(folder) and os.path.isfile(folder):
        raise UserError(f"The run folder {folder} is a file", "Give another --workdir.")
    if task != "evaluate":
        checkpoint_paths.check(folder)
    lock.check_free(folder)
    return folder


def open_folder(
    path: str,
    config: dict,
    images: same_data.Images | None = None,
    *,
    free: Sequence[str] = (),
    filled: Sequence[str] = (),
) -> Path:
    """Makes the folder, or accepts one that holds the same run; writes config.json, data.json and environment.json.

    Any evaluation may replace an evaluation that wrote no results. This process holds the lock of the folder until
    `lock.release`.

    Args:
      config: the config, from `config.arguments.to_dict`.
      images: the images of the run.
      free: keys that may differ from those of the first start, besides `same_run.FREE_KEYS`.
      filled: keys that the config leaves open and that are filled in, see `same_run.differences`.

    Raises:
      UserError: the folder cannot be made, another process holds it, or it has a run with another config or other
        images. The message names the differences.
    """
    config = same_run.with_absolute_paths(config)
    folder = check_folder(path, config.get("task", ""))
    try:
        storage.make(folder)
    except OSError as error:
        raise UserError(
            f"The run folder {folder} cannot be made: {error.strerror}", "Give another --workdir."
        ) from None
    if storage.in_bucket(folder):
        storage.check_bucket_access(folder)
    join.check_shared(folder)
    lock.hold(folder)
    file = folder / "config.json"
    old = _read(file) if file.exists() else None
    has_results = (folder / "summary.json").exists()
    replaced = old is not None and old.get("task") == config.get("task") == "evaluate" and not has_results
    if old is not None and not replaced:
        _compare(folder, old, config, free, filled, has_results=has_results)
        _say_longer(old, config)
    data = images and (images.now if replaced else same_data.check(folder, images, started_before=old is not None))
    coordination.gather(None, barrier="the check of the config")  # all processes have read before one writes
    if jax.process_index() == 0:
        if data:  # written first: a folder with config.json but without data.json is from bt_jax 0.1.0
            storage.write_json(folder / same_data.NAME, data)
        storage.write_json(file, config)
        storage.write_json(folder / "environment.json", environment.describe())
    return folder


def _another_run(folder: Path, old: dict, new: dict, different: list[str]) -> UserError:
    """The error for a folder with another run: its task, its method, its length, or the first keys that differ."""
    task = old.get("task", "")
    if task != new.get("task") and task in RUN_OF:
        return UserError(f"{folder} holds {RUN_OF[task]}", f"Give {new['task']} a --workdir of its own.")
    before, after = old.get("total_epochs", 0), new.get("total_epochs", 0)
    longer = after + new.get("extend_epochs", 0) - before
    only_total = [line.partition(":")[0] for line in different] == ["total_epochs"]
    if only_total and longer > old.get("extend_epochs", 0):
        return UserError(
            f"{folder} holds a run of {counted(before, 'epoch')}, and total_epochs={after:g} is another schedule",
            f"For a longer run, leave total_epochs at {before:g} and set --config.extend_epochs={longer:g}."
            " Otherwise give another --workdir.",
        )
    method = [line.removeprefix("objective.name") for line in different if line.startswith("objective.name:")]
    if method:
        different = [f"method{method[0]}"]
    listed = "; ".join(different[:LISTED]) + f" and {len(different) - LISTED} more" * (len(different) > LISTED)
    return UserError(
        f"{folder} holds a run with another config ({listed})",
        "Give another --workdir, or use that run's config to resume it.",
    )


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


def _compare(
    folder: Path, old: dict, new: dict, free: Sequence[str], filled: Sequence[str], *, has_results: bool
) -> None:
    """Raises UserError if the config is that of another run; says which keys of the evaluation have changed."""
    different = same_run.differences(old, new, free, filled)
    evaluation = [] if has_results else [line for line in different if line.startswith(same_run.EVALUATION)]
    if others := [line for line in different if line not in evaluation]:
        raise _another_run(folder, old, new, others)
    if evaluation:
        messages.say(f"evaluations change from here on: {'; '.join(evaluation)}; metrics.jsonl keeps earlier values")


def _say_longer(old: dict, new: dict) -> None:
    """Says that the schedule has become longer; UserError if it has become shorter."""
    before, after = (config["total_epochs"] + config.get("extend_epochs", 0) for config in (old, new))
    if after < before:
        raise UserError(
            f"The run has {counted(before, 'epoch')} already, but extend_epochs={new['extend_epochs']:g} asks for"
            f" {after:g}",
            f"Set --config.extend_epochs={before - new['total_epochs']:g} or more.",
        )
    if after > before:
        messages.say(
            f"schedule extended: {before:g} -> {counted(after, 'epoch')}; learning rates follow the longer schedule"
            " from here on"
        )


def per_process_file(folder: Path, name: str) -> Path:
    """The file of this process: "broken.txt", or "broken-3.txt" in a multi-process run."""
    stem, dot, suffix = name.partition(".")
    return folder / (f"{stem}-{jax.process_index()}{dot}{suffix}" if jax.process_count() > 1 else name)


def read_run_json(step_folder: Path, name: str, *, fix: str = "") -> dict:
    """Reads the JSON file RUN/name for RUN/checkpoints/STEP; {} for a checkpoint outside a run or a file of weights.

    Args:
      fix: raise a UserError with this fix if the file is damaged; "": return {}.
    """
    if step_folder.parent.name != "checkpoints":
        return {}
    try:
        return storage.read_json(step_folder.parents[1] / name) or {}
    except ValueError:
        if fix:
            raise UserError(f"{step_folder.parents[1] / name} is damaged", fix) from None
        return {}


def _read(file: Path) -> dict:
    fix = (
        "If you own the folder, delete this one file: the checkpoints stay, and the same command resumes from them."
        " Otherwise give another --workdir."
    )
    try:
        content = storage.read_json(file)
    except ValueError:
        raise UserError(f"{file} is damaged", fix) from None
    if content is None:
        raise UserError(f"{file} cannot be read", fix)
    return content
