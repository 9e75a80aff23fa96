"""Resumes a run on other devices, and compares it with the same run on its first devices.

    python -m tests.drills.elastic [--only=CHANGE] [--method=NAME]

All devices are simulated CPU devices. A small run stops after the first of its two epochs. It resumes on the same
devices, and a copy resumes with the same global batch on others: fewer, more, two processes of four. The drill compares
the training metrics of the two. It prints the relative difference of the first loss after the change, and the largest
relative difference of all metrics. If the first loss is the same, the order of the data is the same, because other
images would change the loss by per cents.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import ROOT
from tests.support.processes import free_address
from tests.support.runs import read_lines, tiny

CHANGES = {
    "8 -> 1": [(1, 8), (1, 1)],
    "8 -> 2": [(1, 8), (1, 2)],
    "8 -> 4": [(1, 8), (1, 4)],
    "1 -> 8": [(1, 1), (1, 8)],
    "8, split projector -> 2": [(1, 8, "sharded"), (1, 2)],
    "2, copies -> 8, split projector": [(1, 2), (1, 8, "sharded")],
    "2 processes of 4 -> 1 of 8": [(2, 4), (1, 8)],
    "1 of 8 -> 2 processes of 4": [(1, 8), (2, 4)],
}
STOP = 4  # of eight steps


def train_half(workdir: str, stop: str, method: str, sharding: str, processes: str, process: str, address: str) -> None:
    """Trains one half of the run, as one of its processes."""
    import jax

    if int(processes) > 1:
        jax.distributed.initialize(address, num_processes=int(processes), process_id=int(process))
    from bt_jax import objectives
    from bt_jax.configs import quickstart
    from bt_jax.tasks import pretrain

    config = tiny(**{"model.projector_sharding": sharding, "stop_after_steps": int(stop)})
    projector = config.model.projector
    objectives.select(config, method, quickstart.OPTIONS)
    config.model.projector = projector
    config.evals.final, config.evals.every_epochs = False, 0.0
    # SGD with a small rate. Adam divides a zero gradient by its rounding error; LARS divides by the gradient's norm.
    # Both, and large steps, amplify rounding to per cents within a few steps, which would hide a real difference.
    config.optim.name, config.optim.lr_weights, config.optim.lr_biases = "sgd", 1e-4, 1e-4
    pretrain.run(config, workdir)


def start_half(
    workdir: Path, stop: int, processes: int, devices: int, sharding: str = "replicated", *, method: str
) -> None:
    """Trains one half of the run in new processes."""
    address = free_address()
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.drills.elastic", "train_half"]
    running = [
        subprocess.Popen(
            [*command, *map(str, (workdir, stop, method, sharding, processes, i, address))],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for i in range(processes)
    ]
    if any([process.wait() for process in running]):
        sys.exit(f"{workdir.name} failed.")


def curve(workdir: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of every training metric."""
    return [
        (line["step"], name, value)
        for line in read_lines(workdir)
        for name, value in line.items()
        if name.startswith("train/")
    ]


class Difference(NamedTuple):
    """Relative differences between a run that changed devices and a run that did not.

    Attributes:
      first: that of the first loss after the change.
      largest: the largest one of all training metrics.
      where: metric and step of the largest one.
    """

    first: float
    largest: float
    where: str


def difference(
    name: str, scratch: Path, first_halves: dict[tuple, tuple[Path, list]], method: str = "barlow_twins"
) -> Difference:
    """Runs one of `CHANGES`.

    Args:
      first_halves: a cache that this function fills: {devices of the first half: (run folder after the first half,
        curve of the whole run on these devices)}.
    """
    first, second = CHANGES[name]
    if first not in first_halves:
        number = len(first_halves)
        stopped, whole = scratch / f"stopped{number}", scratch / f"whole{number}"
        start_half(stopped, STOP, *first, method=method)
        shutil.copytree(stopped, whole)
        start_half(whole, 0, *first, method=method)
        first_halves[first] = stopped, curve(whole)
    stopped, expected = first_halves[first]
    folder = scratch / name.replace(" ", "_")
    shutil.copytree(stopped, folder)
    start_half(folder, 0, *second, method=method)
    result = curve(folder)
    assert [line[:2] for line in result] == [line[:2] for line in expected], f"{name}: the metrics have other lines"
    differences = {
        (step, key): abs(a - b) / max(abs(b), 1e-9) for (step, key, a), (_, _, b) in zip(result, expected, strict=True)
    }
    after = next(value for (step, key), value in differences.items() if step > STOP and key == "train/loss")
    worst = max(differences, key=differences.get)
    return Difference(after, differences[worst], f"{worst[1]}, step {worst[0]}")


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CHANGES)
    parser.add_argument("--method", default="barlow_twins", help="of bt_jax.objectives.NAMES")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        first_halves: dict[tuple, tuple[Path, list]] = {}
        print("| devices | first loss after the change | largest difference | metric |\n|---|---|---|---|")
        for name in [options.only] if options.only else CHANGES:
            result = difference(name, Path(scratch), first_halves, options.method)
            print(f"| {name} | {result.first:.0e} | {result.largest:.0e} | {result.where} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train_half"]:
        train_half(*sys.argv[2:])
    else:
        main()
