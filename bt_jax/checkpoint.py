"""Checkpoints of a run through Orbax: RUN/checkpoints/STEP with one folder per part.

encoder    {"params", "batch_stats"} of the backbone: what downstream work restores, without the rest
projector  {"params", "batch_stats"}
train      {"step", "probe", "opt_state", "bad_steps"}: what only a resumed run needs
model      JSON: how to build the backbone, and its recipe for pixels
"""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from bt_jax import models
from bt_jax.errors import UserError, is_disk_full
from bt_jax.state import TrainState


class Checkpoints:
    """Saves in the background, keeps the last few and, for good, those of every `keep_every` steps.

    Args:
      folder: the run folder.
      model: JSON-able options of `models.build` ({"arch": …, …}), stored beside the weights.
    """

    def __init__(self, folder: Path, *, model: dict[str, Any], keep_last: int = 2, keep_every: int = 0):
        self._folder = Path(folder).absolute() / "checkpoints"
        self._model = model
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last, keep_period=keep_every or None, cleanup_tmp_directories=True
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
        with _Explained(f"checkpoint {step} in {self._folder}"):
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
        with _Explained(f"checkpoint in {self._folder}"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the threads."""
        self.wait()
        self._manager.close()


def load_encoder(path: str | Path):
    """Restores the encoder of a pretraining run.

    Args:
      path: a run folder (its newest checkpoint), or a checkpoint folder RUN/checkpoints/STEP.

    Returns:
      (net, variables): net.apply(variables, images, train=False) gives features float32 (n, net.feature_dim); images
      float32 (n, h, w, c), normalised as in training. variables: {"params", "batch_stats"} of numpy arrays.

    Raises:
      UserError: nothing there, or not a checkpoint of bt_jax.
    """
    net = models.build(**read_model(path)["build"])
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    target = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=cpu), shapes)
    with ocp.StandardCheckpointer() as checkpointer:
        variables = checkpointer.restore(step_folder(path) / "encoder", target)
    return net, jax.tree.map(jax.device_get, variables)


def read_model(path: str | Path) -> dict[str, Any]:
    """What stands beside the weights of an encoder: {"build": arguments of `models.build`, "mean", "std": per channel,
    of pixels in [0, 1]}, plain JSON types. Paths and errors as for `load_encoder`."""
    return json.loads((step_folder(path) / "model" / "metadata").read_text())


def step_folder(path: str | Path) -> Path:
    """RUN/checkpoints/STEP of a path as `load_encoder` takes it. UserError if there is none."""
    path = Path(path).absolute()
    if (path / "encoder").is_dir():
        return path
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = [p for p in root.iterdir() if p.name.isdigit() and (p / "encoder").is_dir()] if root.is_dir() else []
    if not steps:
        raise UserError(
            f"No checkpoint of bt_jax in {path}", "Name a run folder or one of its checkpoints/STEP folders."
        )
    return max(steps, key=lambda p: int(p.name))


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
    """Turns a full disk, which reaches us in several guises, into one line."""

    def __init__(self, what: str):
        self._what = what

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is not None and is_disk_full(error):
            raise UserError(
                f"The disk is full while writing {self._what}",
                "Free some space and give the same command again: earlier checkpoints are whole.",
            ) from error
