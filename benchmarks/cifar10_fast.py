"""Finds the best CIFAR-10 encoder for a time limit of minutes on one device.

    python -m bt_jax.prepare --data=cifar10 --npz=cifar10.npz
    python -m benchmarks.cifar10_fast --npz=cifar10.npz --workdir=runs/fast [--call-minutes=9]
    python -m benchmarks.cifar10_fast --npz=cifar10.npz --workdir=runs/fast --stages=online --seeds=1

The benchmark has three stages. `search` trains every candidate recipe for the same short time on 45,000 training images
and evaluates it by 200-NN and by the online probe on the other 5,000. `knn` takes the best candidate by 200-NN, and
`online` the best by the probe. Both train for the whole time on all training images, once per seed, and evaluate on the
test images once, after the last step.

Time is wall time of the process, with imports, compilation and the last evaluation. A short trial run measures the
speed, which gives the number of epochs. Each run is `bt_jax.main` with configs/pretrain_cifar10_r18.py.
WORKDIR/results.json has all results; a finished run does not run again. After --call-minutes, the current run saves a
checkpoint and the benchmark exits with status 75; the same command resumes it. Every run gets the arguments after `--`,
for example --config.model.width=0.125 for a dry run.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bt_jax.messages import TRY_AGAIN

ROOT = Path(__file__).parents[1]
IMAGES = 50_000
HELD_OUT = ("train[:45000]", "train[45000:]")
WHOLE = ("train", "test")
MEASURE = {"search": "val/knn_top1", "knn": "val/knn_top1", "online": "val/online_top1"}
ADAMW = {"optim.name": "adamw", "optim.grad_scale": 1.0, "optim.warmup_epochs": 2.0}
GENTLE = {"views.view1.crop_scale": "(0.2,1.0)", "views.view2.crop_scale": "(0.2,1.0)"}


def rates(weights: float) -> dict[str, float]:
    return {"optim.lr_weights": weights, "optim.lr_biases": weights}


CANDIDATES: dict[str, dict[str, Any]] = {
    "solo-learn": {},
    "batch 1024": {"batch_size": 1024},
    "batch 512, gentle crops": {"batch_size": 512} | GENTLE,
    "adamw 0.002": ADAMW | rates(0.002),
    "adamw 0.004": ADAMW | rates(0.004),
    "adamw 0.002, gentle crops": ADAMW | rates(0.002) | GENTLE,
    "adamw 0.002, batch 512": ADAMW | rates(0.002) | {"batch_size": 512},
    "sgd 0.12": {"optim.name": "sgd", "optim.weight_decay": 5e-4, "optim.warmup_epochs": 2.0} | rates(0.12),
    "one pass for both views": {"objective.two_passes": False},
}


class OutOfTime(Exception):  # noqa: N818 - not an error: the next call resumes the run
    """The time of this call is over, and the current run has saved a checkpoint."""


class Bench:
    """The runs in one folder, and their results."""

    def __init__(self, options: argparse.Namespace):
        self._options, self._folder = options, Path(options.workdir)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._folder / "results.json"
        self.results: dict[str, dict[str, Any]] = json.loads(self._file.read_text()) if self._file.exists() else {}
        self.candidates = [name for name in CANDIDATES if options.candidates in name]
        self._until = time.monotonic() + 60 * options.call_minutes

    def run(self, name: str, keys: dict[str, Any], splits: tuple[str, str], epochs: float, seed: int) -> dict[str, Any]:
        """Runs a recipe or reads its stored result: {"val/knn_top1", "val/online_top1", "seconds", "pairs_per_sec", …}.

        Raises:
          OutOfTime: the time of this call is over.
          SystemExit: the run failed; its output has the error.
        """
        result = self.results.setdefault(name, {"seconds": 0.0})
        if "val/knn_top1" in result:
            return result
        workdir, began = self._folder / name.replace(" ", "_").replace(",", ""), time.monotonic()
        with (self._folder / "output.txt").open("a") as output:
            running = subprocess.Popen(
                command(workdir, self._options, keys, splits, epochs, seed), cwd=ROOT, stdout=output, stderr=output
            )
            try:
                status = running.wait(max(self._until - began, 1))
            except subprocess.TimeoutExpired:
                running.send_signal(signal.SIGUSR1)
                status = running.wait()
        result["seconds"] += time.monotonic() - began
        if status == 0:
            result |= {"keys": keys, "epochs": epochs, "seed": seed} | read(workdir)
        self._file.write_text(json.dumps(self.results, indent=1) + "\n")
        if status == 128 + signal.SIGUSR1:
            raise OutOfTime
        if status:
            log = self._folder / "output.txt"
            raise SystemExit(f"benchmarks.cifar10_fast: {name} exited with status {status}. See {log}.")
        print(f"{name}: {100 * result['val/knn_top1']:.2f} % 200-NN, {100 * result['val/online_top1']:.2f} % online,"
              f" {epochs:g} epochs, {result['seconds']:.0f} s", flush=True)  # fmt: skip
        return result

    def epochs(self, candidate: str, minutes: float, images: int) -> float:
        """The number of epochs that fit into the time, from the start-up time and speed of a `--trial-epochs` run."""
        keys, trial = CANDIDATES[candidate], self._options.trial_epochs
        result = self.run(f"trial {candidate}", keys, HELD_OUT, trial, seed=0)
        start = result["seconds"] - trial * 45_000 / result["pairs_per_sec"]
        return max(int((0.95 * 60 * minutes - start) * result["pairs_per_sec"] / images), 1)

    def best(self, stage: str) -> str:
        """The candidate with the best held-out accuracy by the metric of the stage."""
        return max(self.candidates, key=lambda candidate: self.results[f"search {candidate}"][MEASURE[stage]])


def command(workdir: Path, options: argparse.Namespace, keys, splits, epochs: float, seed: int) -> list[str]:
    keys = {"data.npz": Path(options.npz).resolve(), "data.train_split": splits[0], "data.val_split": splits[1]} | keys
    keys |= {"total_epochs": epochs, "seed": seed, "checkpoint.every_epochs": 0.0}
    # The only evaluation on `val_split` is after the last step.
    keys |= {"evals.every_epochs": epochs, "evals.final": False, "evals.spectrum_images": 0, "compile_cache": ""}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    config = "--config=configs/pretrain_cifar10_r18.py"
    return [sys.executable, "-m", "bt_jax.main", config, f"--workdir={workdir.resolve()}", *flags, *options.rest]


def read(workdir: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["perf/pairs_per_sec"] for line in lines if "perf/pairs_per_sec" in line]
    evaluated = next(line for line in reversed(lines) if "val/knn_top1" in line)
    return {"pairs_per_sec": float(np.median(speeds))} | {name: evaluated[name] for name in set(MEASURE.values())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npz", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--stages", default="search,knn,online")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--candidates", default="", help="use only candidates whose name contains this text")
    parser.add_argument("--search-minutes", type=float, default=1.5, help="time of each candidate")
    parser.add_argument("--knn-minutes", type=float, default=3)
    parser.add_argument("--online-minutes", type=float, default=15)
    parser.add_argument("--trial-epochs", type=float, default=5)
    parser.add_argument("--call-minutes", type=float, default=1e6, help="time limit of this call")
    parser.add_argument("rest", nargs="*", help="arguments of every run, after --")
    options = parser.parse_args()
    bench = Bench(options)
    try:
        for stage in options.stages.split(","):
            if stage == "search":
                for candidate in bench.candidates:
                    epochs = bench.epochs(candidate, options.search_minutes, 45_000)
                    bench.run(f"search {candidate}", CANDIDATES[candidate], HELD_OUT, epochs, seed=0)
                continue
            candidate = bench.best(stage)
            epochs = bench.epochs(candidate, getattr(options, f"{stage}_minutes"), IMAGES)
            runs = [
                bench.run(f"{stage} {candidate} seed {seed}", CANDIDATES[candidate], WHOLE, epochs, int(seed))
                for seed in options.seeds.split(",")
            ]
            figures = [100 * result[MEASURE[stage]] for result in runs]
            print(f"{stage}: {candidate}, {epochs:g} epochs, test images, {len(runs)} seeds: mean"
                  f" {np.mean(figures):.2f} %, from {min(figures):.2f} to {max(figures):.2f} %, at most"
                  f" {max(result['seconds'] for result in runs):.0f} s")  # fmt: skip
    except OutOfTime:
        print("The time of this call is over. Run the same command again to resume.")
        return TRY_AGAIN
    return 0


if __name__ == "__main__":
    sys.exit(main())
