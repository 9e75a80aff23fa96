"""Checkpoints of a run through Orbax: RUN/checkpoints/STEP with one folder per part.

encoder        {"params", "batch_stats"} of the backbone, the only part that downstream work restores
projector      {"params", "batch_stats"}; every other head has a folder of its name with the same content
train          {"step", "probe", "opt_state", "bad_steps"}, which only a resumed run needs
memory         untrained state of the method, if it has any
model          JSON: build options of the backbone and its pixel normalisation
manifest.json  length and checksum of every file, see `manifest`
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from bt_jax import messages, storage
from bt_jax.messages import UserError, is_disk_full
from bt_jax.run_folder import manifest, step_folders
from bt_jax.run_folder.step_folders import COMMITTED, NONE
from bt_jax.state import TrainState


class Checkpoints:
    """Saves in the background; keeps the last few checkpoints, and those of every `keep_every` steps permanently.

    The constructor finds the newest intact checkpoint. Damaged ones after it are reported and moved to RUN/damaged.

    Args:
      folder: the run folder.
      model: JSON-able options of `models.build` ({"arch": …, …}), stored with the weights.

    Raises:
      UserError: there are checkpoints, but all are damaged.
    """

    def __init__(self, folder: Path, *, model: dict[str, Any], keep_last: int = 2, keep_every: int = 0):
        self._folder = storage.absolute(storage.parse_path(folder)) / "checkpoints"
        self._model = model
        self._saving = NONE
        _quarantine_damaged(self._folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last,
            keep_period=keep_every or None,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._written),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Starts writing the state; returns when it is copied off the device."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        with _WriteErrors(f"checkpoint {step}", self._folder):
            self._manager.wait_until_finished()
            self._saving = step
            self._manager.save(step, args=ocp.args.Composite(**items, model=ocp.args.JsonSave(self._model)))

    def restore(self, state: TrainState, step: int) -> TrainState:
        """Restores the state of a step, with the shardings of `state`, whose arrays may be jax.ShapeDtypeStruct."""
        items = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
            for name, tree in _items(state).items()
        }
        absent = [name for name in items if not storage.is_dir(self._folder / str(step) / name)]
        if absent:
            raise UserError(
                f"Checkpoint {step} in {self._folder} has no {', '.join(absent)}: another release wrote it",
                "Finish the run with that release, or train in a new --workdir.",
            )
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return _from_items(restored, state)

    def wait(self) -> None:
        """Waits until everything is on disk; raises if a save failed."""
        with _WriteErrors("checkpoint", self._folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the threads."""
        self.wait()
        self._manager.close()

    def _written(self) -> None:
        """Writes the manifest. Orbax calls it in its own thread after writing all parts, before the final rename."""
        if jax.process_index() == 0:
            step = str(self._saving)
            if storage.in_bucket(self._folder):
                manifest.write(self._folder / step)
                return
            names = (path for path in self._folder.iterdir() if path.name.split(".")[0] == step)
            manifest.write(max(names, key=lambda path: path.stat().st_mtime))


def _mark_committed(folder: Path) -> None:
    """Writes Orbax's commit markers, one in the folder and one in each part (buckets only).

    Orbax deletes checkpoints without them. An interrupted save and a copy from a disk may lack them.
    """
    names = storage.files_below(folder)
    for part in sorted({name.split("/")[0] for name in names if "/" in name}):
        if f"{part}/{COMMITTED}" not in names:
            storage.write(folder / part / COMMITTED, "")
    if COMMITTED not in names:
        storage.write(folder / COMMITTED, "")


def _quarantine_damaged(root: Path) -> None:
    """Moves damaged checkpoints to RUN/damaged. The first process does so; all others wait for it."""
    error, steps = None, step_folders.steps_in(root)
    if not steps and jax.process_count() == 1:
        return
    if jax.process_index() == 0:
        try:
            intact, damaged = step_folders.newest_intact(root, steps) if steps else (NONE, {})
            for step, fault in damaged.items():
                aside = _free_name(root.parent / "damaged" / str(step))
                storage.move(root / str(step), aside)
                messages.say(
                    f"WARNING: checkpoint {step} is damaged ({fault}): moved to {aside}, resuming from {intact}"
                )
            if storage.in_bucket(root):
                for step in set(steps) - set(damaged):
                    _mark_committed(root / str(step))
        except UserError as raised:
            error = raised
    failed = error is not None
    if jax.process_count() > 1:
        failed = bool(multihost_utils.broadcast_one_to_all(np.int32(failed)))
    if failed:
        raise error or UserError(
            f"No checkpoint in {root} is intact",
            "See the message of the first process, which names the damage of each.",
        )


def _free_name(path: Path) -> Path:
    taken = 1
    while path.with_name(f"{path.name}-{taken}").exists():
        taken += 1
    return path.with_name(f"{path.name}-{taken}") if path.exists() else path


def _items(state: TrainState) -> dict[str, Any]:
    """The parts of a checkpoint, each of which can be read separately: encoder, heads, memory if any, and the rest."""
    train = {"step": state.step, "opt_state": state.opt_state, "bad_steps": state.bad_steps}
    # The online probe is not a network of the method and has no entry in batch_stats, not even an empty one.
    train |= {name: tree for name, tree in state.params.items() if name not in state.batch_stats}
    items = {"encoder": state.encoder(), "train": train}
    for name in _heads(state):
        items[name] = state.network(name)
    return items | ({"memory": state.memory} if jax.tree.leaves(state.memory) else {})  # Orbax refuses an empty item


def _heads(state: TrainState) -> list[str]:
    return [name for name in state.batch_stats if name != "backbone"]


def _from_items(items, like: TrainState) -> TrainState:
    train = items["train"]
    nets = {"backbone": items["encoder"]} | {name: items[name] for name in _heads(like)}
    return TrainState(
        step=train["step"],
        params={name: nets[name]["params"] if name in nets else train[name] for name in like.params},
        batch_stats={name: nets[name]["batch_stats"] for name in like.batch_stats},
        opt_state=train["opt_state"],
        bad_steps=train["bad_steps"],
        memory=items["memory"] if jax.tree.leaves(like.memory) else {},
    )


class _WriteErrors:
    """Converts disk-full and bucket errors, which arrive as many exception types, into a UserError."""

    def __init__(self, what: str, folder: Path):
        self._what = f"{what} in {folder}"

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is not None and is_disk_full(error):
            raise UserError(
                f"The disk is full while writing {self._what}",
                "Free some space and run the same command again: earlier checkpoints are intact.",
            ) from error
        if error is not None and (user_error := storage.as_user_error(error, f"{self._what} cannot be written")):
            raise user_error from error
