"""Kills runs at random moments, starts them again, and compares them bit for bit with an uninterrupted run.

    python -m tests.drills.kills [--kills=100] [--input=device|streamed] [--bucket] [--seed=0] [--out=FILE.json]

One small run finishes without interruption. Others get SIGKILL, SIGTERM or SIGUSR1 again and again until they finish,
after a random number of steps or in the middle of a save. Every start is the same command. In the end, two things must
have the same bytes: every array of the last checkpoint (parameters, batch statistics, momentum, probe, counters) and
every line of metrics.jsonl without its speeds. The exit status is 0 if all runs are equal. With --bucket, the run
folders are in a fake Cloud Storage in this process.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from bt_jax import storage
from bt_jax.run_folder.step_folders import read_part, step_folder
from tests.support import bucket, runs
from tests.support.drawn_images import draw_folder
from tests.support.paths import ROOT

TINY = {
    "total_epochs": 10.0,
    "compile_cache": "",
    "self_check": False,
    "log.every_steps": 1,
    "log.tensorboard": False,
    "checkpoint.every_epochs": 1.0,
    "evals.every_epochs": 2.0,
    "evals.final": False,
    "evals.spectrum_images": 16,
    "evals.knn_k": 5,
    "model.width": 1 / 16,
    "model.projector": (32, 32),
    "views.size": 12,
    "data.train_split": "train[:64]",
    "data.val_split": "test[:16]",
}
SHORT = {"total_epochs": 4.0, "evals.every_epochs": 0.0}  # overrides of TINY with --short
QUICKSTART = "configs/quickstart.py:smoke"
MOMENTS = ("step", "save")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)


def command(workdir: str, images: Path | None, *, short: bool, config: str) -> list[str]:
    """The command of a run on drawn patterns on the device, or on PNG files from disk."""
    options = TINY | (SHORT if short else {})
    if images:
        options |= {"data.folder": str(images), "data.on_device": False, "data.canvas": 24}
        options |= {"data.train_split": "train", "data.val_split": "val"}
    if config != QUICKSTART:
        del options["model.projector"]  # another method may need other widths
    flags = [f"--config.{key}={value}" for key, value in options.items()]
    return [sys.executable, "-m", "bt_jax.main", f"--config={config}", f"--workdir={workdir}", *flags]


class Run:
    """A run folder, on disk or in the bucket.

    Attributes:
      log: file with the terminal output of the run, or of its process 0.
    """

    def __init__(
        self,
        scratch: Path,
        name: str,
        server: bucket.Bucket | None = None,
        *,
        short: bool = False,
        config: str = QUICKSTART,
    ):
        self.scratch, self.name, self._server, self.short, self.config = scratch, name, server, short, config
        self.log = scratch / f"{name}-0.log"
        self.workdir = storage.parse_path(f"gs://bucket/{name}") if server else scratch / name

    def steps(self) -> int:
        """The number of steps in the log so far."""
        try:
            return self.log.read_bytes().count(b"\nstep ")
        except FileNotFoundError:
            return 0

    def saving(self) -> bool:
        """True if the run is writing a checkpoint."""
        if self._server:
            names = [name for name in list(self._server.objects) if name.startswith(f"{self.name}/checkpoints/")]
            parts = [name.split("/")[2:] for name in names]
            finished = {step for step, *rest in parts if rest == ["commit_success.txt"]}
            return bool({step for step, *_ in parts} - finished)
        try:
            return any("tmp" in name for name in os.listdir(self.workdir / "checkpoints"))
        except FileNotFoundError:
            return False


def start(run: Run, images: Path | None) -> subprocess.Popen:
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "XLA_FLAGS": ""}
    # All starts share the compiled programs, also the small ones: compilation would take most of a start.
    cache = {"COMPILATION_CACHE_DIR": str(run.scratch / "xla"), "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment |= {f"JAX_{name}": value for name, value in cache.items()}
    with run.log.open("a") as log:
        return subprocess.Popen(
            command(str(run.workdir), images, short=run.short, config=run.config),
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def start_and_kill(run: Run, images: Path | None, draw: random.Random, kind: signal.Signals | None, moment: str) -> str:
    """Starts the run and sends it a signal, at a random step or in a save.

    Returns:
      "finished" if the run finished, "killed" if the signal ended it, else its exit status.
    """
    running = start(run, images)
    before = run.steps()
    more = draw.randint(1, 6 if run.short else 16)
    while running.poll() is None:
        if kind is not None and run.steps() >= before + more and (moment == "step" or run.saving()):
            time.sleep(draw.uniform(0, 0.03))
            os.killpg(running.pid, kind)
            running.wait()
            break
        time.sleep(0.001)
    if running.returncode == 0:
        return "finished"
    expected = -signal.SIGKILL if kind is signal.SIGKILL else 128 + (kind or 0)
    return "killed" if running.returncode == expected else f"status {running.returncode}"


def hashes(workdir: Path) -> tuple[str, str]:
    """Hashes of the arrays in the newest checkpoint and of the metrics without speeds."""
    newest = step_folder(workdir)
    arrays = hashlib.sha256(newest.name.encode())
    for part in sorted(path.name for path in newest.iterdir() if path.is_dir() and path.name != "model"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(read_part(newest / part)):
            arrays.update(f"{part}{jax.tree_util.keystr(path)}{leaf.dtype}{leaf.shape}".encode())
            arrays.update(np.asarray(leaf).tobytes())
    lines = json.dumps(runs.without_speeds(workdir))
    return arrays.hexdigest(), hashlib.sha256(lines.encode()).hexdigest()


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--input", choices=("device", "streamed"), default="device")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--bucket", action="store_true")
    parser.add_argument("--config", default=QUICKSTART, help="a pretraining config (default: the quickstart)")
    parser.add_argument("--short", action="store_true", help="four epochs without evaluations")
    options = parser.parse_args(arguments)
    draw = random.Random(options.seed)
    kills: Counter[str] = Counter()
    equal = different = 0
    faults: list[str] = []
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(bucket.running()) if options.bucket else None
        os.environ.update(bucket.environment(server.server_port) if server else {})
        images = draw_folder(scratch / "images") if options.input == "streamed" else None
        whole = Run(scratch, "whole", server, short=options.short, config=options.config)
        if start_and_kill(whole, images, draw, None, "") != "finished":
            print(whole.log.read_text()[-2000:])
            return 1
        expected = hashes(whole.workdir)
        number = 0
        while kills.total() < options.kills:
            number += 1
            victim, end = Run(scratch, f"victim{number}", server, short=options.short, config=options.config), ""
            while end != "finished":
                enough = kills.total() >= options.kills
                kind, moment = draw.choice(SIGNALS), draw.choice(MOMENTS)
                end = start_and_kill(victim, images, draw, None if enough else kind, moment)
                if end == "killed":
                    kills[f"{kind.name} at a {moment}"] += 1
                elif end != "finished":
                    log = victim.log.read_text()[-2000:]
                    faults.append(f"{victim.workdir}: {end} after {kind.name} at a {moment}\n{log}")
                    break
            result = hashes(victim.workdir) if end == "finished" else ("", "")
            names = [name for name, a, b in zip(("arrays", "metrics"), result, expected, strict=True) if a != b]
            equal, different = equal + (not names), different + bool(names)
            if names:
                faults.append(f"{victim.workdir}: different {' and '.join(names)}")
            print(f"{kills.total()} kills, {number} runs, {equal} equal", flush=True)
    print(*(f"{name:22} {count}" for name, count in sorted(kills.items())), *faults, sep="\n")
    print(f"{kills.total()} kills in {number} runs: {equal} equal bit for bit, {different} not")
    if options.out:
        table = {
            "input": options.input,
            "bucket": options.bucket,
            "kills": dict(kills),
            "runs": number,
            "equal": equal,
            "faults": faults,
        }
        options.out.write_text(json.dumps(table, indent=1) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
