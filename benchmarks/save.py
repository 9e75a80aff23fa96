"""Measures the cost of a checkpoint: its size, the pause in training, and the time until it is on disk.

    python -m benchmarks.save --config=configs/pretrain_imagenet_r50.py [--images=1281167] [--pairs_per_sec=…]

The benchmark saves the whole state of the config, with momentum as after a step. Training pauses during the copy of the
state from the device; the write to disk happens in the background. With --pairs_per_sec, the last line has the share of
the pause in the time between two checkpoints (`checkpoint.every_epochs`). Without it, the last line has the speed, in
pairs per second, at which this share would be 1 %.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from bt_jax import randomness, sharding
from bt_jax.cli import config_program
from bt_jax.run_folder import manifest
from bt_jax.run_folder.checkpoints import Checkpoints
from bt_jax.train import build, epochs

IMAGES = flags.DEFINE_integer("images", 1_281_167, "Number of training images per epoch.")
RATE = flags.DEFINE_float("pairs_per_sec", 0, "Training speed.")
TIMES = 3


def main(argv) -> None:
    del argv
    config = config_program.CONFIG.value
    plan, recipe, mesh = epochs.make_plan(config, IMAGES.value), build.build_recipe(config.views), sharding.make_mesh()
    training = build.build_training(config, plan, recipe, 1000, mesh)
    state = training.create(randomness.stream(0, randomness.INIT))
    # The first momentum is zero, and zeros compress to nothing.
    noise = jax.tree.map(lambda a: jax.random.normal(jax.random.key(a.size), a.shape) if a.ndim else a, state.opt_state)
    state = jax.block_until_ready(dataclasses.replace(state, opt_state=noise))
    every = plan.steps(config.checkpoint.every_epochs)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), model={}, keep_last=1)
        for step in range(1, TIMES + 1):
            state = dataclasses.replace(state, step=jnp.full_like(state.step, step))
            started = time.perf_counter()
            checkpoints.save(state)
            pause = time.perf_counter() - started
            checkpoints.wait()
            whole = time.perf_counter() - started
            print(f"save {step}: pause {pause:.2f} s, on disk after {whole:.2f} s", flush=True)
        newest = Path(folder) / "checkpoints" / str(TIMES)
        for part in sorted(path for path in newest.iterdir() if path.is_dir()):
            size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
            print(f"{part.name:10} {size / 1e6:10.1f} MB")
        started = time.perf_counter()
        assert not manifest.find_damage(newest)
        print(f"checked in {time.perf_counter() - started:.2f} s")
        started = time.perf_counter()
        jax.block_until_ready(checkpoints.restore(state, TIMES))
        print(f"restored in {time.perf_counter() - started:.2f} s")
        checkpoints.close()
    pairs = every * config.batch_size
    if RATE.value:
        print(f"share of {every} steps at {RATE.value:g} pairs/s: {100 * pause / (pairs / RATE.value):.3f} %")
    else:
        print(f"1 % of {every} steps at {0.01 * pairs / pause:,.0f} pairs/s")


if __name__ == "__main__":
    config_program.run(main, __doc__)
