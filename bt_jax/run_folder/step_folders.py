"""The folders of checkpoints, RUN/checkpoints/STEP: lists them, finds intact ones, and reads their parts."""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from bt_jax import messages, storage
from bt_jax.messages import UserError
from bt_jax.run_folder import checkpoint_paths, manifest

NONE = -1  # in place of a step

COMMITTED = "commit_success.txt"  # Orbax's name (orbax/checkpoint/_src/path/atomicity.py), only in buckets


def has_checkpoints(run: str | Path) -> bool:
    """Whether a run folder has any checkpoint, intact or damaged."""
    return bool(steps_in(storage.parse_path(run) / "checkpoints"))


def step_folder(path: str | Path) -> Path:
    """RUN/checkpoints/STEP for a path given to `load_encoder`: the named checkpoint, or the newest intact one.

    Raises:
      UserError: there is no checkpoint, none is intact, or Orbax cannot read such a path.
    """
    path = storage.absolute(storage.parse_path(path))
    checkpoint_paths.check(path, writes=False)
    parts = ("encoder", "model", "projector")
    if storage.is_dir(path / "encoder"):
        if fault := manifest.find_damage(path, parts):
            raise UserError(f"The checkpoint {path} is damaged: {fault}", "Name an earlier one, or the run folder.")
        return path
    root = path / "checkpoints" if storage.is_dir(path / "checkpoints") else path
    steps = steps_in(root)
    if not path.exists():
        raise UserError(f"There is no file or folder {path}", "Name a run folder, a checkpoint, or a file of weights.")
    if root == path and not any(_is_checkpoint(path / str(step)) for step in steps):  # photographs by year, say
        steps = []
    if not steps:
        raise UserError(
            f"There is no checkpoint of bt_jax in {path}", "Name a run folder or one of its checkpoints/STEP folders."
        )
    intact, damaged = newest_intact(
        root, steps, parts, fix="Restore a copy of one, or name another run or a file of weights."
    )
    for step, fault in damaged.items():
        messages.say_once(f"WARNING: checkpoint {step} of {root} is damaged ({fault}), so checkpoint {intact} is used")
    return root / str(intact)


def steps_in(root: Path) -> list[int]:
    """The steps that have a checkpoint, newest first."""
    if not storage.is_dir(root):
        return []
    named = (p.name for p in root.iterdir() if p.name.isdecimal() and storage.is_dir(p) and _is_finished(p))
    return sorted((int(name) for name in named if str(int(name)) == name), reverse=True)


def _is_finished(folder: Path) -> bool:
    """Whether a checkpoint is complete. In a bucket it has its name from the start, and its manifest comes last."""
    return not storage.in_bucket(folder) or any((folder / name).exists() for name in (manifest.NAME, COMMITTED))


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of bt_jax of any version, intact or damaged."""
    return (folder / manifest.NAME).exists() or any(storage.is_dir(folder / part) for part in manifest.NEEDED)


def newest_intact(
    root: Path,
    steps: list[int],
    parts: tuple[str, ...] | None = None,
    *,
    fix: str = "Restore a copy of one, or give another --workdir to start again.",
) -> tuple[int, dict[int, str]]:
    """The newest intact step, and {step: damage} of the newer ones; UserError with `fix` if none is intact.

    Args:
      steps: the newest first.
    """
    damaged: dict[int, str] = {}
    for step in steps:
        fault = manifest.find_damage(root / str(step), parts)
        if not fault:
            return step, damaged
        damaged[step] = fault
    reasons = "; ".join(f"{step}: {fault}" for step, fault in damaged.items())
    raise UserError(
        f"No checkpoint in {root} is intact ({reasons})",
        fix,
    )


def stored_model(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model" / "metadata").read_text())


def read_part(folder: Path) -> dict[str, Any] | None:
    """Reads RUN/checkpoints/STEP/PART as numpy arrays, independent of the devices that saved it; None if missing."""
    if not storage.is_dir(folder):
        return None
    stored = ocp.StandardCheckpointHandler().metadata(folder).tree
    return restore(folder, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stored), None)


def _host_device() -> jax.Device:
    """The CPU, or the first accelerator if JAX_PLATFORMS excludes the CPU."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def restore(folder: Path, shapes, sharding: jax.sharding.Sharding | None):
    at = sharding or jax.sharding.SingleDeviceSharding(_host_device())
    target = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes)
    with ocp.StandardCheckpointer() as checkpointer:
        variables = checkpointer.restore(folder, target)
    return variables if sharding else jax.tree.map(jax.device_get, variables)
