"""Time and memory of a training step of every method, relative to Barlow Twins, in one process.

    python -m benchmarks.method_steps [--methods=NAMES] [--rounds=8] [--steps=2] [--batch=128]

The settings are those of `benchmarks.methods`. The methods take turns, and the shortest time of a method counts, so
that other programs on the machine matter little. "state" is the size of parameters, optimizer and memory, "temporary"
the memory that the compiled step needs besides. The heads differ in size, as those of the official codes do.
"""

import argparse
import sys
import time
from typing import Any

import jax
import numpy as np

from benchmarks import methods
from bt_jax import sharding
from bt_jax.config import keys
from bt_jax.configs import pretrain_cifar10_r18
from bt_jax.plan import estimate
from bt_jax.train import build, epochs

IMAGES = 10_000


class Method:
    """The compiled step of a method, its state and its shortest time."""

    def __init__(self, name: str, batch_size: int):
        mesh = sharding.make_mesh(jax.devices()[:1])
        settings = settings_of(name, batch_size)
        recipe, steps = build.build_recipe(settings.views), IMAGES // batch_size
        plan = epochs.Plan(steps, int(steps * settings.total_epochs))
        training = build.build_training(settings, plan, recipe, 10, mesh, images=IMAGES)
        rng = np.random.default_rng(0)
        rows = {"image": rng.integers(0, 256, (batch_size, 32, 32, 3), np.uint8)}
        rows |= {name: np.arange(batch_size, dtype=np.int32) for name in ("id", "label")}
        self._batch = sharding.put_batch(rows | {"label": rows["label"] % 10}, mesh)
        self._state = training.create(jax.random.key(0))
        step = jax.jit(training.step, donate_argnums=0, out_shardings=(training.layout, sharding.replicated(mesh)))
        self._step = step.lower(self._state, self._batch).compile()
        self.state_mb = sum(leaf.nbytes for leaf in jax.tree.leaves(self._state)) / 1e6
        self.temporary_mb = estimate.measure(self._step, mesh)["temporary_bytes"] / 1e6
        self.ms = float("inf")

    def run(self, steps: int) -> None:
        """Takes some steps, and keeps the time of one of them if it is the shortest so far."""
        began = time.perf_counter()
        for _ in range(steps):
            self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready(metrics)
        self.ms = min(self.ms, 1e3 * (time.perf_counter() - began) / steps)


def settings_of(name: str, batch_size: int) -> Any:
    """The sections of the config of a method's run in `benchmarks.methods`."""
    config = pretrain_cifar10_r18.get_config(f"batch={batch_size},recipe=common,method={name}")
    config.update_from_flattened_dict(
        methods.Cell(name, methods.RATES[0], 0).keys(methods.EPOCHS, methods.TRIAL_EPOCHS)
    )
    return keys.read(config)


def table(found: dict[str, Method]) -> str:
    """Markdown: a row for each method; the first is the unit."""
    first = next(iter(found.values()))
    lines = ["| method | time of a step | state | temporary memory |", "|---|---|---|---|"]
    for name, method in found.items():
        times, state, temporary = method.ms / first.ms, method.state_mb / first.state_mb, method.temporary_mb
        lines.append(f"| {name} | {times:.2f} | {state:.2f} | {temporary / first.temporary_mb:.2f} |")
    absolute = f"{first.ms:.0f} ms, {first.state_mb:.1f} MB and {first.temporary_mb:.0f} MB"
    return "\n".join([*lines, "", f"1.00 is {absolute}."])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(methods.OWN), help="names with commas; the first is the unit")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="of a method in a round")
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args(arguments)
    found = {name: Method(name, options.batch) for name in options.methods.split(",")}
    for _ in range(options.rounds + 1):  # the first round warms up
        for method in found.values():
            method.run(options.steps)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
