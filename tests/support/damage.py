"""A small run folder with two checkpoints, and three ways to damage one of its files."""

from pathlib import Path

import jax
import numpy as np

from bt_jax import models
from bt_jax.run_folder.checkpoints import Checkpoints
from bt_jax.state import TrainState

BUILD = {"arch": "resnet18", "small_images": True, "width": 1 / 16, "channels": 3, "stem_padding": 1}
MODEL = {"build": BUILD, "mean": [0.5], "std": [0.25]}


def random_state(step: int) -> TrainState:
    """A small state with the structure of a real one. The step is the seed of its random numbers."""
    generator = np.random.default_rng(step)

    def draw(shapes):
        return jax.tree.map(lambda s: jax.numpy.asarray(generator.standard_normal(s.shape, np.float32)), shapes)

    backbone = draw(jax.eval_shape(models.build(**BUILD).init, jax.random.key(0)))
    projector = {"fc0": {"kernel": np.zeros((32, 16), np.float32)}}
    probe = {"kernel": np.zeros((32, 4), np.float32), "bias": np.zeros(4, np.float32)}
    params = {"backbone": backbone["params"], "projector": draw(projector), "probe": draw(probe)}
    stats = {"backbone": backbone["batch_stats"], "projector": draw({"bn0": {"mean": np.zeros(16, np.float32)}})}
    momentum = jax.tree.map(lambda leaf: 2 * leaf, params)
    return TrainState(jax.numpy.int32(step), params, stats, {"trace": momentum}, jax.numpy.int32(0))


def equal(a: TrainState, b: TrainState) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def write_run(folder: Path) -> list[TrainState]:
    """Writes two checkpoints, of steps 1 and 2; returns their states."""
    states = [random_state(1), random_state(2)]
    checkpoints = reopened(folder)
    for state in states:
        checkpoints.save(state)
    checkpoints.close()
    return states


def reopened(folder: Path) -> Checkpoints:
    """Opens the checkpoints of a folder, as a run does."""
    return Checkpoints(folder, model=MODEL)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete(path: Path) -> None:
    path.unlink()


WAYS = (truncate, flip, delete)
