"""A run that changes devices half-way, compared with the same run going on where it was.

    python -m tests.drills.elastic

Simulated CPU devices. A small run is stopped after the first of its two epochs; then its folder is continued on the
same devices, and a copy of it, with the same global batch, on others: fewer, more, two processes of four. Told is the
largest relative difference of any number of training in metrics.jsonl from there on, and that of the first loss after
the change alone, which shows that the order of the data is the same: other images would move it by per cents.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
    from bt_jax import pretrain
    from configs import quickstart

    config = quickstart.get_config("smoke")
    config.data.train_split, config.data.val_split = "train[:64]", "test[:40]"
    config.evals.knn_k, config.evals.final = 5, False
    # SGD at a small rate: Adam divides by a gradient's own rounding where it is zero, LARS by a gradient's norm. Both,
    # and large steps, make float32's last digit grow to per cents within a few steps, which would hide what is asked.
    config.optim.name, config.optim.lr_weights, config.optim.lr_biases = "sgd", 1e-4, 1e-4
    config.evals.every_epochs = 0.0
    config.model.head, config.stop_after_steps = head, int(stop)
    pretrain.run(config, workdir)


def half(workdir: Path, stop: int, processes: int, devices: int, head: str = "replicated") -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.drills.elastic", *map(str, (workdir, stop, head, processes, i, address))],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for i in range(processes)
    ]
    if any([process.wait() for process in running]):
        sys.exit(f"{workdir.name} failed")


def curve(workdir: Path) -> list[tuple[int, str, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], name, value) for line in lines for name, value in line.items() if name.startswith("train/")]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        begun: dict[tuple, tuple[Path, list]] = {}
        print("| devices | first loss after | largest difference | of |\n|---|---|---|---|")
        for name, (first, second) in ROADS.items():
            if first not in begun:
                stopped, whole = Path(scratch) / f"stopped{len(begun)}", Path(scratch) / f"whole{len(begun)}"
                half(stopped, STOP, *first)
                shutil.copytree(stopped, whole)
                half(whole, 0, *first)
                begun[first] = stopped, curve(whole)
            stopped, wanted = begun[first]
            folder = Path(scratch) / name.replace(" ", "_")
            shutil.copytree(stopped, folder)
            half(folder, 0, *second)
            found = curve(folder)
            assert [each[:2] for each in found] == [each[:2] for each in wanted], f"{name}: other lines"
            differences = {
                (step, key): abs(a - b) / max(abs(b), 1e-9)
                for (step, key, a), (_, _, b) in zip(found, wanted, strict=True)
            }
            after = next(value for (step, key), value in differences.items() if step > STOP and key == "train/loss")
            worst = max(differences, key=differences.get)
            print(f"| {name} | {after:.0e} | {differences[worst]:.0e} | {worst[1]}, step {worst[0]} |", flush=True)


if __name__ == "__main__":
    work(*sys.argv[1:]) if len(sys.argv) > 1 else main()
