"""Checkpoints of a run through Orbax: RUN/checkpoints/STEP with one folder per part.

encoder        {"params", "batch_stats"} of the backbone: what downstream work restores, without the rest
projector      {"params", "batch_stats"}
train          {"step", "probe", "opt_state", "bad_steps"}: what only a resumed run needs
model          JSON: how to build the backbone, and its recipe for pixels
manifest.json  length and checksum of every file: see `manifest`
"""

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from bt_jax import messages, models, storage
from bt_jax.messages import UserError, is_disk_full
from bt_jax.run_folder import manifest
from bt_jax.state import TrainState
from bt_jax.weights import foreign_files

NONE = -1  # in place of a step
SIZE = 224  # pixels that an encoder evaluates if no run says otherwise: ImageNet's, in the paper's section 3.1
COMMITTED = "commit_success.txt"  # Orbax's name (orbax/checkpoint/_src/path/atomicity.py), only in buckets


class Checkpoints:
    """Saves in the background, keeps the last few and, for good, those of every `keep_every` steps.

    Opening it looks for the newest checkpoint that is whole. Damaged ones after it are named and moved to RUN/damaged.

    Args:
      folder: the run folder.
      model: JSON-able options of `models.build` ({"arch": …, …}), stored beside the weights.

    Raises:
      UserError: there are checkpoints, and all are damaged.
    """

    def __init__(self, folder: Path, *, model: dict[str, Any], keep_last: int = 2, keep_every: int = 0):
        self._folder = storage.absolute(storage.path(folder)) / "checkpoints"
        self._model = model
        self._saving = NONE
        _set_damaged_aside(self._folder)
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
        """Starts writing the state; returns once it is copied off the device."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        with _Explained(f"checkpoint {step}", self._folder):
            self._manager.wait_until_finished()
            self._saving = step
            self._manager.save(step, args=ocp.args.Composite(**items, model=ocp.args.JsonSave(self._model)))

    def restore(self, state: TrainState, step: int) -> TrainState:
        """The state of that step, laid out over the devices as `state` is."""
        items = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
            for name, tree in _items(state).items()
        }
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        return _from_items(found, state)

    def wait(self) -> None:
        """Returns when everything is on disk; raises if a save failed."""
        with _Explained("checkpoint", self._folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the threads."""
        self.wait()
        self._manager.close()

    def _written(self) -> None:
        """Orbax calls it in its own thread when all parts are written, and before they get their final name."""
        if jax.process_index() == 0:
            step = str(self._saving)
            if storage.in_bucket(self._folder):
                manifest.write(self._folder / step)
                return
            names = (path for path in self._folder.iterdir() if path.name.split(".")[0] == step)
            manifest.write(max(names, key=lambda path: path.stat().st_mtime))


def load_encoder(path: str | Path, *, sharding: jax.sharding.Sharding | None = None):
    """Restores an encoder; no optimizer is read, and the number of devices does not matter.

    Args:
      path: a run folder (its newest whole checkpoint), a checkpoint folder RUN/checkpoints/STEP, what `bt_jax.convert`
        wrote as a checkpoint, or weights that `foreign_files.read` reads: .safetensors, .pth, a Hugging Face folder.
      sharding: where the variables are to lie, e.g. NamedSharding(mesh, PartitionSpec()); by default as numpy arrays.

    Returns:
      (net, variables): net.apply(variables, images, train=False) gives features float32 (n, net.feature_dim); images
      float32 (n, h, w, c), normalised as in training. variables: {"params", "batch_stats"}.

    Raises:
      UserError: nothing there, not a checkpoint of bt_jax, or a damaged one.
    """
    found = read(path, sharding=sharding)
    return models.build(**found.model["build"]), found.variables


@storage.reached()
def read(
    path: str | Path, *, projector: bool = False, sharding: jax.sharding.Sharding | None = None
) -> foreign_files.Weights:
    """All that stands there of an encoder, of one and the same step; see `load_encoder`.

    Args:
      projector: read that as well, where there is one. Always as numpy arrays.
    """
    if foreign_files.is_foreign(path):
        found = foreign_files.read(path)
        return found._replace(variables=jax.device_put(found.variables, sharding)) if sharding else found
    folder = step_folder(path)
    model = _model(folder)
    shapes = jax.eval_shape(models.build(**model["build"]).init, jax.random.key(0))
    head = read_part(folder / "projector") if projector else None
    return foreign_files.Weights(model, _restore(folder / "encoder", shapes, sharding), head)


@storage.reached()
def load_projector(path: str | Path) -> dict[str, Any] | None:
    """{"params", "batch_stats"} of numpy arrays of a checkpoint's projector, or None where it has none.

    Paths and errors as for `load_encoder`.
    """
    return (
        foreign_files.read(path).projector
        if foreign_files.is_foreign(path)
        else read_part(step_folder(path) / "projector")
    )


@storage.reached()
def read_model(path: str | Path) -> dict[str, Any]:
    """What stands beside the weights of an encoder: {"build": arguments of `models.build`, "mean", "std": per channel,
    of pixels in [0, 1]}, plain JSON types. Paths and errors as for `load_encoder`."""
    return foreign_files.read(path).model if foreign_files.is_foreign(path) else _model(step_folder(path))


def evaluation_size(config: dict[str, Any]) -> tuple[int, int]:
    """(size, resize), the pixels of the images that a run evaluates, of what its config.json holds.

    Returns:
      The side of the centre crop, and the shorter side before it or 0; (0, 0) if the config does not say.
    """
    try:
        evals = config["evals"]
        size, resize = int(evals.get("size") or config["views"]["size"]), int(evals.get("resize", 0))
    except (ValueError, LookupError, TypeError, AttributeError):  # another program's config.json, or a damaged one
        return 0, 0
    return (size, resize) if size > 0 else (0, 0)


def write_encoder(path: Path, *, model: dict[str, Any], variables: dict[str, Any], projector=None) -> None:
    """Writes a checkpoint that holds an encoder, and a projector if there is one, and nothing to go on training from.

    Args:
      path: the folder; must not exist.
      model: see `read_model`.
      variables, projector: {"params", "batch_stats"}.
    """
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
    try:
        unfinished.chmod(0o755)  # mkdtemp's are for the user alone
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(unfinished / "encoder", variables)
            if projector:
                checkpointer.save(unfinished / "projector", projector)
        (unfinished / "model").mkdir()
        (unfinished / "model" / "metadata").write_text(json.dumps(model))
        manifest.write(unfinished)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def begun(run: str | Path) -> bool:
    """Whether a run folder has any checkpoint, whole or not."""
    return bool(_steps(storage.path(run) / "checkpoints"))


@storage.reached()
def place(path: str | Path) -> Path:
    """Where the weights lie that `load_encoder` takes: a file, or a `step_folder`."""
    return storage.absolute(storage.path(path)) if foreign_files.is_foreign(path) else step_folder(path)


def step_folder(path: str | Path) -> Path:
    """RUN/checkpoints/STEP of a path as `load_encoder` takes it: the one that is named, or the newest that is whole.

    Raises:
      UserError: there is none, or none whole.
    """
    path = storage.absolute(storage.path(path))
    parts = ("encoder", "model", "projector")
    if storage.is_dir(path / "encoder"):
        if fault := manifest.fault(path, parts):
            raise UserError(f"The checkpoint {path} is damaged: {fault}", "Name an earlier one, or the run folder.")
        return path
    root = path / "checkpoints" if storage.is_dir(path / "checkpoints") else path
    steps = _steps(root)
    if not path.exists():
        raise UserError(f"There is no file or folder {path}", "Name a run folder, a checkpoint, or a file of weights.")
    if not steps:
        raise UserError(
            f"No checkpoint of bt_jax in {path}", "Name a run folder or one of its checkpoints/STEP folders."
        )
    whole, damaged = _newest_whole(root, steps, parts)
    for step, fault in damaged.items():
        _say_once(f"WARNING: checkpoint {step} of {root} is damaged ({fault}): taking {whole}")
    return root / str(whole)


def _steps(root: Path) -> list[int]:
    """Newest first."""
    if not storage.is_dir(root):
        return []
    named = (p.name for p in root.iterdir() if p.name.isdecimal() and storage.is_dir(p) and _is_finished(p))
    return sorted((int(name) for name in named if str(int(name)) == name), reverse=True)


def _is_finished(folder: Path) -> bool:
    """In a bucket a checkpoint has its name from the start; when it has its manifest all of it is there."""
    return not storage.in_bucket(folder) or any((folder / name).exists() for name in (manifest.NAME, COMMITTED))


def _commit(folder: Path) -> None:
    """Says so to Orbax, which deletes what is not committed: in a bucket by an object, in the folder and in its parts.

    What was interrupted right before that has none, and what was copied from a disk may have none.
    """
    names = storage.files_below(folder)
    for part in sorted({name.split("/")[0] for name in names if "/" in name}):
        if f"{part}/{COMMITTED}" not in names:
            storage.write(folder / part / COMMITTED, "")
    if COMMITTED not in names:
        storage.write(folder / COMMITTED, "")


def _newest_whole(root: Path, steps: list[int], parts: tuple[str, ...] | None = None) -> tuple[int, dict[int, str]]:
    """The first of the steps that is whole, and {step: what is wrong} of those before it."""
    damaged: dict[int, str] = {}
    for step in steps:
        fault = manifest.fault(root / str(step), parts)
        if not fault:
            return step, damaged
        damaged[step] = fault
    told = "; ".join(f"{step}: {fault}" for step, fault in damaged.items())
    raise UserError(
        f"No checkpoint in {root} is whole ({told})",
        "Put back a copy of one; to train anew, take another --workdir.",
    )


def _set_damaged_aside(root: Path) -> None:
    """On the first process, which all others wait for."""
    error, steps = None, _steps(root)
    if not steps and jax.process_count() == 1:
        return
    if jax.process_index() == 0:
        try:
            whole, damaged = _newest_whole(root, steps) if steps else (NONE, {})
            for step, fault in damaged.items():
                aside = _free_name(root.parent / "damaged" / str(step))
                storage.move(root / str(step), aside)
                messages.say(
                    f"WARNING: checkpoint {step} is damaged ({fault}): moved to {aside}, going back to {whole}"
                )
            if storage.in_bucket(root):
                for step in set(steps) - set(damaged):
                    _commit(root / str(step))
        except UserError as found:
            error = found
    failed = error is not None
    if jax.process_count() > 1:
        failed = bool(multihost_utils.broadcast_one_to_all(np.int32(failed)))
    if failed:
        raise error or UserError(
            f"No checkpoint in {root} is whole", "The first process tells what is wrong with each."
        )


def _free_name(path: Path) -> Path:
    taken = 1
    while path.with_name(f"{path.name}-{taken}").exists():
        taken += 1
    return path.with_name(f"{path.name}-{taken}") if path.exists() else path


@functools.cache
def _say_once(text: str) -> None:
    messages.say(text)


def _model(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model" / "metadata").read_text())


def read_part(folder: Path) -> dict[str, Any] | None:
    """RUN/checkpoints/STEP/PART as numpy arrays, whatever devices it was saved from; None where it is not there."""
    if not storage.is_dir(folder):
        return None
    stored = ocp.StandardCheckpointHandler().metadata(folder).tree
    return _restore(folder, jax.tree.map(lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype), stored), None)


def _restore(folder: Path, shapes, sharding: jax.sharding.Sharding | None):
    at = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    target = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes)
    with ocp.StandardCheckpointer() as checkpointer:
        variables = checkpointer.restore(folder, target)
    return variables if sharding else jax.tree.map(jax.device_get, variables)


def _items(state: TrainState) -> dict[str, Any]:
    """The encoder, the projector where there is one, and the rest, each to be read by itself."""
    apart = ("backbone", "projector")
    train = {"step": state.step, "opt_state": state.opt_state, "bad_steps": state.bad_steps}
    train |= {name: tree for name, tree in state.params.items() if name not in apart}  # "probe" or "head"
    items = {"encoder": state.encoder(), "train": train}
    if "projector" in state.params:
        items["projector"] = {"params": state.params["projector"], "batch_stats": state.batch_stats["projector"]}
    return items


def _from_items(items, like: TrainState) -> TrainState:
    train = items["train"]
    nets = {"backbone": items["encoder"]} | ({"projector": items["projector"]} if "projector" in like.params else {})
    return TrainState(
        step=train["step"],
        params={name: nets[name]["params"] if name in nets else train[name] for name in like.params},
        batch_stats={name: nets[name]["batch_stats"] for name in like.batch_stats},
        opt_state=train["opt_state"],
        bad_steps=train["bad_steps"],
    )


class _Explained:
    """Turns a full disk, or a bucket out of reach, which come to us in several guises, into one line."""

    def __init__(self, what: str, folder: Path):
        self._what = f"{what} in {folder}"

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is not None and is_disk_full(error):
            raise UserError(
                f"The disk is full while writing {self._what}",
                "Free some space and give the same command again: earlier checkpoints are whole.",
            ) from error
        if error is not None and (found := storage.explained(error, f"{self._what} cannot be written")):
            raise found from error
