"""Runs that are killed at random moments and started again, compared bit for bit with one that never was.

    python -m tests.drills.kills [--kills=100] [--input=device|streamed] [--bucket] [--seed=0] [--out=FILE.json]

One small run is left alone. Others are hit again and again until they are through: SIGKILL, SIGTERM or SIGUSR1, after a
step drawn at random or in the middle of writing a checkpoint. Each start is the same command. At the end every array of
the last checkpoint (parameters, batch statistics, momentum, probe, counters) and every line of metrics.jsonl but for
speeds must be the same bytes. Exit status 0 only where all are. With --bucket the run folders are in a stand-in for
Cloud Storage, of this process.
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
SHORT = {"total_epochs": 4.0, "evals.every_epochs": 0.0}  # instead, with --short
QUICKSTART = "configs/quickstart.py:smoke"
MOMENTS = ("step", "save")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)


def command(workdir: str, images: Path | None, *, short: bool, config: str) -> list[str]:
    """The run on drawn patterns that live on the device, or on PNG files that are streamed."""
    options = TINY | (SHORT if short else {})
    if images:
        options |= {"data.folder": str(images), "data.on_device": False, "data.canvas": 24}
        options |= {"data.train_split": "train", "data.val_split": "val"}
    if config != QUICKSTART:
        del options["model.projector"]  # which another method may need to be of its own widths
    flags = [f"--config.{key}={value}" for key, value in options.items()]
    return [sys.executable, "-m", "bt_jax.main", f"--config={config}", f"--workdir={workdir}", *flags]


class Run:
    """One run folder: the disk's, or the bucket's.

    Attributes:
      log: what it said on the terminal, or process 0 of several did.
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
        """Lines of steps so far."""
        try:
            return self.log.read_bytes().count(b"\nstep ")
        except FileNotFoundError:
            return 0

    def saving(self) -> bool:
        if self._server:
            names = [name for name in list(self._server.objects) if name.startswith(f"{self.name}/checkpoints/")]
            found = [name.split("/")[2:] for name in names]
            finished = {step for step, *rest in found if rest == ["commit_success.txt"]}
            return bool({step for step, *_ in found} - finished)
        try:
            return any("tmp" in name for name in os.listdir(self.workdir / "checkpoints"))
        except FileNotFoundError:
            return False


def start(run: Run, images: Path | None) -> subprocess.Popen:
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "XLA_FLAGS": ""}
    # Every program, however small, is compiled once: most of a start would be compiling.
    cache = {"COMPILATION_CACHE_DIR": str(run.scratch / "xla"), "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment |= {f"JAX_{name}": value for name, value in cache.items()}
    with run.log.open("a") as said:
        return subprocess.Popen(
            command(str(run.workdir), images, short=run.short, config=run.config),
            cwd=ROOT,
            env=environment,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def hit(run: Run, images: Path | None, draw: random.Random, kind: signal.Signals | None, moment: str) -> str:
    """Starts the run and hits it at that moment. "through" where it ended by itself, else "killed" or its status."""
    running = start(run, images)
    before = run.steps()
    wanted = draw.randint(1, 6 if run.short else 16)
    while running.poll() is None:
        if kind is not None and run.steps() >= before + wanted and (moment == "step" or run.saving()):
            time.sleep(draw.uniform(0, 0.03))
            os.killpg(running.pid, kind)
            running.wait()
            break
        time.sleep(0.001)
    if running.returncode == 0:
        return "through"
    expected = -signal.SIGKILL if kind is signal.SIGKILL else 128 + (kind or 0)
    return "killed" if running.returncode == expected else f"status {running.returncode}"


def remains(workdir: Path) -> tuple[str, str]:
    """Hashes of the newest checkpoint's arrays and of the lines of metrics without speeds."""
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
    parser.add_argument("--config", default=QUICKSTART, help="another pretraining config")
    parser.add_argument("--short", action="store_true", help="four epochs, and no evaluations")
    options = parser.parse_args(arguments)
    draw = random.Random(options.seed)
    hits: Counter[str] = Counter()
    equal = different = 0
    faults: list[str] = []
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(bucket.running()) if options.bucket else None
        os.environ.update(bucket.environment(server.server_port) if server else {})
        images = draw_folder(scratch / "images") if options.input == "streamed" else None
        whole = Run(scratch, "whole", server, short=options.short, config=options.config)
        if hit(whole, images, draw, None, "") != "through":
            print(whole.log.read_text()[-2000:])
            return 1
        wanted = remains(whole.workdir)
        number = 0
        while hits.total() < options.kills:
            number += 1
            victim, came = Run(scratch, f"victim{number}", server, short=options.short, config=options.config), ""
            while came != "through":
                enough = hits.total() >= options.kills
                kind, moment = draw.choice(SIGNALS), draw.choice(MOMENTS)
                came = hit(victim, images, draw, None if enough else kind, moment)
                if came == "killed":
                    hits[f"{kind.name} at a {moment}"] += 1
                elif came != "through":
                    faults.append(
                        f"{victim.workdir}: {came} after {kind.name} at a {moment}\n{victim.log.read_text()[-2000:]}"
                    )
                    break
            found = remains(victim.workdir) if came == "through" else ("", "")
            names = [name for name, a, b in zip(("arrays", "metrics"), found, wanted, strict=True) if a != b]
            equal, different = equal + (not names), different + bool(names)
            if names:
                faults.append(f"{victim.workdir}: other {' and '.join(names)}")
            print(f"{hits.total()} kills, {number} runs, {equal} equal", flush=True)
    print(*(f"{name:22} {count}" for name, count in sorted(hits.items())), *faults, sep="\n")
    print(f"{hits.total()} kills in {number} runs: {equal} equal bit for bit, {different} not")
    if options.out:
        result = {
            "input": options.input,
            "bucket": options.bucket,
            "kills": dict(hits),
            "runs": number,
            "equal": equal,
            "faults": faults,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
