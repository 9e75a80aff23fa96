"""A run that changes devices half-way, compared with the same run going on where it was.

    python -m tests.drills.elastic [--only=ROAD]

Simulated CPU devices. A small run is stopped after the first of its two epochs; then its folder is continued on the
same devices, and a copy of it, with the same global batch, on others: fewer, more, two processes of four. Printed: the
largest relative difference of any number of training in metrics.jsonl from there on, and that of the first loss after
the change alone, which shows that the order of the data is the same: other images would move it by per cents.
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

ROADS = {
    "8 -> 1": [(1, 8), (1, 1)],
    "8 -> 2": [(1, 8), (1, 2)],
    "8 -> 4": [(1, 8), (1, 4)],
    "1 -> 8": [(1, 1), (1, 8)],
    "8, split head -> 2": [(1, 8, "sharded"), (1, 2)],
    "2, copies -> 8, split head": [(1, 2), (1, 8, "sharded")],
    "2 processes of 4 -> 1 of 8": [(2, 4), (1, 8)],
    "1 of 8 -> 2 processes of 4": [(1, 8), (2, 4)],
}
STOP = 4  # of eight steps


def work(workdir: str, stop: str, head: str, processes: str, process: str, address: str) -> None:
    """One process of one half."""
    import jax

    if int(processes) > 1:
        jax.distributed.initialize(address, num_processes=int(processes), process_id=int(process))
    from bt_jax.tasks import pretrain

    config = tiny(**{"model.projector_sharding": head, "stop_after_steps": int(stop)})
    config.evals.final, config.evals.every_epochs = False, 0.0
    # SGD at a small rate: Adam divides by a gradient's own rounding where it is zero, LARS by a gradient's norm. Both,
    # and large steps, make float32's last digit grow to per cents within a few steps, which would hide what is asked.
    config.optim.name, config.optim.lr_weights, config.optim.lr_biases = "sgd", 1e-4, 1e-4
    pretrain.run(config, workdir)


def half(workdir: Path, stop: int, processes: int, devices: int, head: str = "replicated") -> None:
    address = free_address()
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.drills.elastic", "work"]
    running = [
        subprocess.Popen(
            [*command, *map(str, (workdir, stop, head, processes, i, address))],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for i in range(processes)
    ]
    if any([process.wait() for process in running]):
        sys.exit(f"{workdir.name} failed")


def curve(workdir: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of every number of training."""
    return [
        (line["step"], name, value)
        for line in read_lines(workdir)
        for name, value in line.items()
        if name.startswith("train/")
    ]


class Difference(NamedTuple):
    """How far a run that changed devices is from one that did not.

    Attributes:
      first: relative difference of the first loss after the change.
      largest: of all numbers of training after the start.
      where: of which number, and at which step, that is.
    """

    first: float
    largest: float
    where: str


def difference(name: str, scratch: Path, begun: dict[tuple, tuple[Path, list]]) -> Difference:
    """Runs one of `ROADS`.

    Args:
      begun: for each first half that was run, its folder and the curve of the run that changes nothing; more is noted.
    """
    first, second = ROADS[name]
    if first not in begun:
        stopped, whole = scratch / f"stopped{len(begun)}", scratch / f"whole{len(begun)}"
        half(stopped, STOP, *first)
        shutil.copytree(stopped, whole)
        half(whole, 0, *first)
        begun[first] = stopped, curve(whole)
    stopped, wanted = begun[first]
    folder = scratch / name.replace(" ", "_")
    shutil.copytree(stopped, folder)
    half(folder, 0, *second)
    found = curve(folder)
    assert [each[:2] for each in found] == [each[:2] for each in wanted], f"{name}: other lines"
    differences = {
        (step, key): abs(a - b) / max(abs(b), 1e-9) for (step, key, a), (_, _, b) in zip(found, wanted, strict=True)
    }
    after = next(value for (step, key), value in differences.items() if step > STOP and key == "train/loss")
    worst = max(differences, key=differences.get)
    return Difference(after, differences[worst], f"{worst[1]}, step {worst[0]}")


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ROADS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        begun: dict[tuple, tuple[Path, list]] = {}
        print("| devices | first loss after | largest difference | of |\n|---|---|---|---|")
        for name in [options.only] if options.only else ROADS:
            found = difference(name, Path(scratch), begun)
            print(f"| {name} | {found.first:.0e} | {found.largest:.0e} | {found.where} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(*sys.argv[2:])
    else:
        main()
