"""Compares the methods at an equal budget: CIFAR-10, 10,000 training images, a narrow ResNet-18 at 16 pixels.

    TFDS_DATA_DIR=DIR python -m benchmarks.methods                        # all trials, then all seeds; resumable
    python -m benchmarks.methods --methods=moco,byol --seeds=1            # some runs
    python -m benchmarks.methods --trials                                 # the trials alone
    python -m benchmarks.methods --table                                  # the table of the runs that are finished

Each method trains with three learning rates for TRIAL_EPOCHS on train[:10000]. 200-NN on train[10000:12000] chooses the
rate. With it, the method trains for EPOCHS with each seed. 200-NN and the offline linear probe then classify the test
images once. Views, backbone, batch, optimizer, schedule and number of epochs are the same for all methods. Each method
keeps its own heads, with hidden layers of at most 512 units, and its own rules: the constant rate of SimSiam's
predictor, the momentum of BYOL's average.

Every trial and every seed is one run of `python -m bt_jax pretrain`, and one JSON file in benchmarks/results/methods. A
run that has its file does not run again. If a run is interrupted, the same command resumes it from its last checkpoint.
Two calls may share the machine: `taskset -c 0` and `taskset -c 1` with other `--methods`.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "methods"
EPOCHS, TRIAL_EPOCHS = 12.0, 4.0
SEEDS = (0, 1, 2)
RATES = (0.0015, 0.003, 0.006)  # of AdamW, per 256 images
SAME = {
    "views.size": 16,
    "views.view1.crop_scale": (0.3, 1.0),  # as in results/cifar10_cpu.md
    "views.view2.crop_scale": (0.3, 1.0),
    "model.width": 0.25,
    "model.dtype": "float32",
    "model.zero_init_residual": False,
    "optim.name": "adamw",
    "optim.weight_decay": 1e-4,
    "optim.grad_scale": 1.0,
    "optim.warmup_epochs": 1.0,
    "optim.start_factor": 0.0,
    "optim.end_factor": 0.0,
    "evals.size": 24,
    "evals.spectrum_images": 0,
    "log.every_steps": 78,  # an epoch
    "checkpoint.every_epochs": 3.0,
    "checkpoint.keep_last": 1,
}
# The layers of the official heads with narrower hidden layers. A run has 936 steps, so averages move faster: 0.97 is
# BYOL's momentum for its shortest schedule (configs/byol.py:23 of deepmind-research/byol). MoCo's momentum, temperature
# and loss in both directions are those of its notebook. The queue has a fifth of the images. SimCLR's temperature is
# that of its README for CIFAR-10.
OWN: dict[str, dict[str, Any]] = {
    "barlow_twins": {"model.projector": (512, 512, 512)},
    "vicreg": {"model.projector": (512, 512, 512)},
    "simclr": {"model.projector": (512, 512, 128), "objective.temperature": 0.5},
    "infonce": {"model.projector": (512, 128)},
    "align_uniform": {"model.projector": (512, 512, 128)},
    "drlim": {"model.projector": (512, 128)},
    "moco": {"model.projector": (512, 128), "objective.queue": 2048, "objective.momentum": 0.99}
    | {"objective.temperature": 0.1, "objective.symmetric": True},
    "byol": {"model.projector": (512, 256), "objective.predictor": 512, "objective.momentum": 0.97},
    "direct_pred": {"model.projector": (512, 128), "objective.momentum": 0.97},
    "simsiam": {"model.projector": (512, 512, 512), "objective.predictor": 128},
}


class Cell(NamedTuple):
    """One run: a trial of a learning rate, or a seed with the chosen one."""

    method: str
    rate: float
    seed: int | None  # None: a trial

    @property
    def name(self) -> str:
        return f"{self.method}-{f'trial-{self.rate:g}' if self.seed is None else f'seed-{self.seed}'}"

    @property
    def file(self) -> Path:
        return RESULTS / f"{self.name}.json"

    def keys(self, epochs: float, trial_epochs: float) -> dict[str, Any]:
        """The keys of the config that this run sets."""
        trial = self.seed is None
        budget = trial_epochs if trial else epochs
        own = SAME | OWN[self.method] | {"optim.lr_weights": self.rate, "optim.lr_biases": self.rate}
        splits = {"data.train_split": "train[:10000]", "data.val_split": "train[10000:12000]" if trial else "test"}
        own |= {"total_epochs": budget, "evals.every_epochs": budget, "evals.final": not trial}
        return own | splits | {"seed": self.seed or 0}


def command(cell: Cell, workdir: str, npz: str, options: argparse.Namespace) -> list[str]:
    """The arguments of `python` that train a cell in the folder `workdir`, on the images of the cache file `npz`."""
    keys = cell.keys(options.epochs, options.trial_epochs) | {"data.npz": npz}
    flags = [f"--config.{key}={str(value).replace(' ', '')}" for key, value in keys.items()]
    config = f"--config=pretrain_cifar10_r18:batch=128,recipe=common,method={cell.method}"
    return ["-m", "bt_jax", "pretrain", config, f"--workdir={workdir}", *flags, *options.rest]


def run(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """The stored result of a cell; runs it first if there is none.

    Raises:
      SystemExit: the run failed; its output has the error.
    """
    if cell.file.exists():
        return json.loads(cell.file.read_text())
    folder, began, cpu = Path(options.workdir).resolve(), time.monotonic(), cpu_seconds()
    workdir, output = folder / cell.name, folder / f"{cell.name}.txt"
    resumed = workdir.exists()
    arguments = command(cell, str(workdir), str(images(folder)), options)
    cache = f"--config.compile_cache={folder / 'compiled'}"
    print(f"{cell.name} ...", flush=True)
    with output.open("a") as file:
        status = subprocess.run([sys.executable, *arguments, cache], cwd=ROOT, stdout=file, stderr=file).returncode
    if status:
        raise SystemExit(f"benchmarks.methods: {cell.name} exited with status {status}. See {output}.")
    found = read(workdir, cell) | {"seconds": round(time.monotonic() - began), "resumed": resumed}
    found |= {"cpu_seconds": round(cpu_seconds() - cpu), "machine": machine()}
    found["command"] = "python " + shlex.join(command(cell, f"runs/{cell.name}", "cifar10.npz", options))
    RESULTS.mkdir(parents=True, exist_ok=True)
    part = cell.file.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.rename(cell.file)
    print(f"{cell.name}: {100 * found['knn']:.2f} % 200-NN, {found['seconds']} s", flush=True)
    return found


def images(folder: Path) -> Path:
    """The path of a cache file with the images, so that no run needs TensorFlow."""
    npz = folder / "cifar10.npz"
    if not npz.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{os.getpid()}.npz"
        prepare = [sys.executable, "-m", "bt_jax.prepare", "--data=cifar10", f"--npz={part}"]
        if subprocess.run(prepare, cwd=ROOT).returncode:
            raise SystemExit("benchmarks.methods: CIFAR-10 cannot be prepared. Set TFDS_DATA_DIR to its folder.")
        part.rename(npz)
    return npz


def read(workdir: Path, cell: Cell) -> dict[str, Any]:
    """The result of a finished run; accuracies from 0 to 1."""
    found: dict[str, Any] = {"method": cell.method, "seed": cell.seed, "rate": cell.rate}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last: dict[str, float] = {}
    for line in lines:
        last |= line
    summary = json.loads((workdir / "summary.json").read_text())
    found |= {"steps": summary["steps"], "knn": last["val/knn_top1"], "online_probe": last["val/online_top1"]}
    if cell.seed is not None:
        found |= {"knn": summary["knn_top1"]["trained"], "probe": summary["linear_top1"]["trained"]}
        for other in ("untrained", "raw_pixels"):
            found[other] = {"knn": summary["knn_top1"][other], "probe": summary["linear_top1"][other]}
    speeds = [line["perf/pairs_per_sec"] for line in lines if "perf/pairs_per_sec" in line]
    return found | {"pairs_per_sec": round(float(np.median(speeds))), "embedding_std": last["train/embedding_std"]}


def cpu_seconds() -> float:
    """The CPU time of all runs so far, which other programs on the machine change less than the time on the clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine() -> str:
    """The processor and the cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} of {os.cpu_count()} cores"


def chosen(method: str) -> float | None:
    """The learning rate with the best 200-NN of the trials; None if a trial is missing."""
    cells = [Cell(method, rate, None) for rate in RATES]
    if not all(cell.file.exists() for cell in cells):
        return None
    return max(cells, key=lambda cell: json.loads(cell.file.read_text())["knn"]).rate


# ----------------------------------------------------------------------------------------------------------- the table


def table(methods: list[str]) -> str:
    """Markdown: a row for each method, in the order of 200-NN, and the command of each cell that was not run."""
    rows, missing, baselines = [], [], {"untrained": {}, "raw_pixels": {}}
    for method in methods:
        results = []
        for seed in SEEDS:
            file = Cell(method, 0.0, seed).file
            if not file.exists():
                missing.append(
                    f"- {method}, seed {seed}: `python -m benchmarks.methods --methods={method} --seeds={seed}`"
                )
                continue
            results.append(json.loads(file.read_text()))
            baselines["untrained"][seed] = results[-1]["untrained"]  # a seed has one backbone, whatever the method
            baselines["raw_pixels"][0] = results[-1]["raw_pixels"]
        rows.append(row(method, results))
    rows.sort(key=lambda row: -row[0])
    rows += [row(name.replace("_", " "), list(found.values())) for name, found in baselines.items() if found]
    head = [
        "| method | seeds | 200-NN, % | offline probe, % | rate per 256 | CPU seconds |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(head + [line for _, line in rows] + (["", "Not run:", "", *missing] if missing else []))


def row(name: str, results: list[dict[str, Any]]) -> tuple[float, str]:
    """The mean 200-NN of results, and their row of the table."""
    if not results:
        return 0.0, f"| {name} | 0 | not run | not run | | |"
    knn, probe = ([result[metric] for result in results] for metric in ("knn", "probe"))
    rate = f"{results[0]['rate']:g}" if "rate" in results[0] else ""
    seconds = f"{np.mean([result['cpu_seconds'] for result in results]):.0f}" if rate else ""
    return float(
        np.mean(knn)
    ), f"| {name} | {len(results)} | {interval(knn)} | {interval(probe)} | {rate} | {seconds} |"


def interval(shares: list[float]) -> str:
    """The mean of shares in percent, and the half width of its 95 % interval by Student's t, if there are two."""
    values = 100 * np.asarray(shares)
    if len(values) < 2:
        return f"{values.mean():.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.1f} ± {half:.1f}"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(OWN), help="names with commas")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="numbers with commas")
    parser.add_argument("--trials", action="store_true", help="run the trials alone")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    parser.add_argument("--workdir", default=str(ROOT / "runs" / "methods"), help="of run folders and images")
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--trial-epochs", type=float, default=TRIAL_EPOCHS)
    parser.add_argument("rest", nargs="*", help="arguments of every run, after --")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    methods = options.methods.split(",")
    if unknown := sorted(set(methods) - set(OWN)):
        raise SystemExit(f"benchmarks.methods: Unknown method {', '.join(unknown)}. Use {', '.join(OWN)}.")
    if options.table:
        print(table(methods))
        return 0
    for method in methods:
        for rate in RATES:
            run(Cell(method, rate, None), options)
    if not options.trials:
        for seed in map(int, options.seeds.split(",")):  # seed by seed, so that a first table is early
            for method in methods:
                rate = chosen(method)
                assert rate is not None, "the trials have run"
                run(Cell(method, rate, seed), options)
        print(table(methods))
    return 0


if __name__ == "__main__":
    sys.exit(main())
