"""Times the step on a CPU with each setting of XLA's library fusions, in turns in one process; see bt_jax.compilers.

    python -m benchmarks.fusions --config=configs/quickstart.py --rounds=8 --steps=3

Prints the processor time (user and system, of all cores) and the wall time of a step: the minimum over the rounds. Also
times settings that compute wrong numbers on this release of jaxlib, for comparison.
"""

import resource
import time
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from bt_jax import compilers, sharding
from bt_jax.cli import config_program
from bt_jax.train import build, epochs

ROUNDS = flags.DEFINE_integer("rounds", 6, "Number of rounds; the first does not count.")
STEPS = flags.DEFINE_integer("steps", 1, "Steps per round and setting.")

KINDS = {
    "XLA's default": ("INDIVIDUAL_DOT", "INDIVIDUAL_CONVOLUTION", "REDUCE"),
    "-reduce": ("INDIVIDUAL_DOT", "INDIVIDUAL_CONVOLUTION"),
    compilers.SAFE: ("INDIVIDUAL_DOT",),
    "-individual_convolution": ("INDIVIDUAL_DOT", "REDUCE"),
    "none": (),
}


class Times(NamedTuple):
    """Milliseconds per step."""

    processor: float
    wall: float


def main(argv: list[str]) -> None:
    del argv
    config = config_program.CONFIG.value
    mesh, recipe = sharding.make_mesh(), build.build_recipe(config.views)
    training = build.build_training(config, epochs.Plan(5000, 500_000), recipe, 1000, mesh)
    n, side = config.batch_size, max(config.views.size, 32)
    images = np.random.default_rng(0).integers(0, 256, (n, side, side, len(recipe.mean)), np.uint8)
    batch = sharding.put_batch({"image": images, "id": np.arange(n, dtype=np.int32), "label": np.zeros(n, int)}, mesh)
    layouts = (training.layout, sharding.replicated(mesh))
    programs, states = {}, {}
    for name, kinds in KINDS.items():
        states[name] = training.create(jax.random.key(0))
        options = {compilers.FLAG: ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)}
        jitted = jax.jit(training.step, donate_argnums=0, out_shardings=layouts)
        programs[name] = jitted.lower(states[name], batch).compile(compiler_options=options)
    taken = {name: [] for name in KINDS}
    for turn in range(ROUNDS.value):
        for name, program in programs.items():
            before, started = _processor_seconds(), time.perf_counter()
            for _ in range(STEPS.value):
                states[name], metrics = program(states[name], batch)
            jax.block_until_ready(metrics)
            seconds = _processor_seconds() - before, time.perf_counter() - started
            if turn:
                taken[name].append(Times(*(1e3 * value / STEPS.value for value in seconds)))
    print(f"jaxlib {compilers.jaxlib_version()}\n\n| setting | processor time, ms | wall time, ms |\n|---|---|---|")
    for name, times in taken.items():
        print(f"| `{name}` | {min(t.processor for t in times):.0f} | {min(t.wall for t in times):.0f} |")


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    config_program.run(main, __doc__)
