"""What happens to a run of several processes when something goes wrong with one: seen when, ended how, lost what.

    python -m tests.drills.faults [--only=NAME,…]

Two or four processes on this machine, two simulated devices each, the small run of `kills.py`. Each fault is brought
about once the run has taken some steps, or from the start. Printed: how long the last process needed to end,
all statuses, what was said, and whether the same command then reaches the arrays of the run that was left alone.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.drills.kills import TINY, Run, remains
from tests.support import bucket
from tests.support.drawn_images import draw_folder
from tests.support.paths import ROOT
from tests.support.processes import free_address

AFTER = 6  # steps
SILENT, STUCK = 10, 15  # seconds; the defaults are 60 and 3600
OPTIONS = TINY | {"watch.silent_seconds": SILENT, "watch.stuck_seconds": STUCK, "compile_cache": ""}


class Fault(NamedTuple):
    """What goes wrong.

    Attributes:
      act: act(processes, bucket) once some steps are taken.
      bucket: the run folder is in one.
      options: config keys of process 1 alone.
      fault: what process 1 does to itself, see `work`.
      says: a pattern that somebody's output must hold.
      statuses: that every process must end with, or one of several; None: any but 0 for the victim, for which it
        stands.
      goes_on: the same command, without the fault, must come to the same end.
    """

    says: str
    statuses: tuple[int | tuple[int, ...] | None, ...]
    act: Callable | None = None
    bucket: bool = False
    options: dict[str, str] = {}
    fault: str = ""
    goes_on: bool = True
    streamed: bool = False
    devices: int = 2  # of each process


def send(number: signal.Signals, process: int) -> Callable:
    return lambda running, server: running[process].send_signal(number)


def refuse(running: list[subprocess.Popen], server: bucket.Bucket) -> None:
    server.refuses = 503


def faults(elsewhere: Path, fewer: Path) -> dict[str, Fault]:
    lost = "(has been silent|is down|because one process has ended)"
    return {
        "kill -9, process 1": Fault(lost, (75, None), send(signal.SIGKILL, 1)),
        "kill -9, process 1, one device each": Fault(lost, (75, None), send(signal.SIGKILL, 1), devices=1),
        # JAX aborts whoever loses the coordination service, unless `watchdog` or a collective is quicker.
        "kill -9, process 0": Fault("", (None, (75, -signal.SIGABRT)), send(signal.SIGKILL, 0)),
        "kill -9, process 2 of 4": Fault(lost, (75, 75, None, 75), send(signal.SIGKILL, 2)),
        "SIGSTOP, process 1": Fault("process 1 .* silent", (75, None), send(signal.SIGSTOP, 1)),
        "SIGSTOP, process 0": Fault("process 0 .* silent", (None, 75), send(signal.SIGSTOP, 0)),
        "SIGTERM, process 1": Fault("SIGTERM: saving", (143, 143), send(signal.SIGTERM, 1)),
        "SIGUSR1, process 0 of 4": Fault("SIGUSR1: saving", (138,) * 4, send(signal.SIGUSR1, 0)),
        "kill -9, process 1, in a bucket": Fault(lost, (75, None), send(signal.SIGKILL, 1), bucket=True),
        "SIGTERM, process 1, in a bucket": Fault("SIGTERM: saving", (143, 143), send(signal.SIGTERM, 1), bucket=True),
        # gcsfs tries for about half a minute; `stuck_seconds` is shorter here.
        "the bucket says 503 from now on": Fault("(no step for|cannot be)", (75, 75), refuse, bucket=True),
        "stuck, process 1": Fault("no step for .*Behind is process 1", (75, 75), fault="stuck"),
        "an exception, process 1": Fault("process 1 .* has ended: ValueError: planted", (1, 1), fault="raise"),
        "slow data, process 1": Fault("most waiting: process 1", (0, 0), fault="slow", streamed=True),
        "another learning rate": Fault(
            "process 1 .* config.optim.lr_weights", (2, 2), options={"config.optim.lr_weights": "0.1"}, goes_on=False
        ),
        "fewer images": Fault(
            "process 1 .* images 32 not 64",
            (2, 2),
            options={"config.data.folder": str(fewer)},
            goes_on=False,
            streamed=True,
        ),
        "no images": Fault("no-such-folder", (2, 2), options={"config.data.folder": "/no-such-folder"}, goes_on=False),
        "run folder not shared": Fault(
            "not the same folder on all hosts: process 1", (2, 2), options={"workdir": str(elsewhere)}, goes_on=False
        ),
        "only one of two comes": Fault("Not all processes joined", (75,), fault="absent"),
    }


def work() -> None:
    """One process: bt_jax.main, with what $FAULT says."""
    fault = os.environ.get("FAULT", "")
    from bt_jax import main
    from bt_jax.data import prefetch
    from bt_jax.processes import join, watchdog

    join.JOIN_SECONDS = 30
    if fault in ("stuck", "raise"):
        report = watchdog.report_progress

        def at(step, phase, *more, **options):
            report(step, phase, *more, **options)
            if step >= AFTER and phase == watchdog.Phase.TRAINING:
                if fault == "raise":
                    raise ValueError("planted")
                time.sleep(3600)

        watchdog.report_progress = at
    if fault == "slow":
        ahead = prefetch._run_ahead

        def slowly(iterator):
            for each in iterator:
                time.sleep(0.5)
                yield each

        prefetch._run_ahead = lambda iterator, *rest: ahead(slowly(iterator), *rest)
    main.run()


def start(run: Run, count: int, fault: Fault, images: Path | None) -> list[subprocess.Popen]:
    """All processes of a run, their output in files beside the run folder."""
    address = free_address()
    cache = {"COMPILATION_CACHE_DIR": str(run.scratch / "xla"), "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = os.environ | {f"JAX_{name}": value for name, value in cache.items()}
    environment |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={fault.devices}", "JAX_PLATFORMS": "cpu"}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3"}
    options = OPTIONS
    if images:
        options = options | {"data.folder": str(images), "data.on_device": False, "data.canvas": 24}
        options |= {"data.train_split": "train", "data.val_split": "val"}
    running = []
    for process in range(count):
        if process and fault.fault == "absent":
            continue
        flags = {"config": "configs/quickstart.py:smoke", "workdir": str(run.workdir)}
        flags |= {f"config.{key}": str(value) for key, value in options.items()}
        flags |= {"coordinator": address, "processes": str(count), "process": str(process)}
        flags |= fault.options if process == 1 else {}
        mine = environment | ({"FAULT": fault.fault} if process == 1 else {})
        with (run.scratch / f"{run.name}-{process}.log").open("a") as said:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.drills.faults", "work", *(f"--{k}={v}" for k, v in flags.items())],
                    cwd=ROOT,
                    env=mine,
                    stdout=said,
                    stderr=said,
                )
            )
    return running


def brought_about(name: str, fault: Fault, scratch: Path, images: Path | None, server) -> tuple[str, bool]:
    """A line of the table, and whether all is as promised."""
    count = 4 if name.endswith("of 4") else 2
    run = Run(scratch, re.sub(r"\W+", "-", name), server if fault.bucket else None)
    running = start(run, count, fault, images)
    began = time.monotonic()
    if fault.act:
        while run.steps() < AFTER and all(process.poll() is None for process in running):
            time.sleep(0.05)
        began = time.monotonic()
        fault.act(running, server)
    seen, victims = {}, [i for i, status in enumerate(fault.statuses) if status is None]
    while time.monotonic() - began < 180 and len(seen) < len(running) - (fault.act is not None and len(victims) == 1):
        for i, process in enumerate(running):
            if i not in seen and process.poll() is not None and not (fault.act and victims == [i]):
                seen[i] = time.monotonic() - began
        time.sleep(0.05)
    for process in running:
        process.kill()
    statuses = [process.wait() for process in running]
    said = "".join(path.read_text(errors="replace") for path in sorted(scratch.glob(f"{run.name}-?.log")))
    found = re.search(fault.says, said)
    right = [
        got != 0 if wanted is None else got in (wanted if isinstance(wanted, tuple) else (wanted,))
        for got, wanted in zip(statuses, fault.statuses, strict=False)
    ]
    promised = all(right) and bool(found)
    ends, server.refuses = "-", 0
    if fault.goes_on:
        well = Fault("", (), devices=fault.devices)
        for process in (again := start(run, count, well, images)):
            process.wait()
        same = all(process.returncode == 0 for process in again)
        same = same and remains(run.workdir) == whole(scratch, count, well, images)
        ends, promised = "the same run" if same else "ANOTHER RUN", promised and same
    line = next((line for line in said.splitlines() if fault.says and re.search(fault.says, line)), "")
    told = f"| {name} | {max(seen.values(), default=180):.0f} s | {', '.join(map(str, statuses))} | {ends} |"
    return f"{told} {line.removeprefix('bt_jax: ')[:150]} |" + ("" if promised else " NOT AS PROMISED"), promised


def whole(scratch: Path, count: int, well: Fault, images: Path | None) -> tuple[str, str]:
    """What is left of the run that was let alone, made once."""
    run = Run(scratch, f"whole-{count}-{well.devices}-{bool(images)}")
    if not run.workdir.exists():
        for process in start(run, count, well, images):
            process.wait()
    return remains(run.workdir)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of faults, or parts of them")
    options = parser.parse_args(arguments)
    kept = True
    with tempfile.TemporaryDirectory() as folder, bucket.running() as server:
        os.environ.update(bucket.environment(server.server_port))
        scratch = Path(folder)
        images = draw_folder(scratch / "images")
        shutil.copytree(images, scratch / "fewer")
        shutil.rmtree(scratch / "fewer" / "train" / "b")
        (scratch / "fewer" / "train" / "b").mkdir()
        shutil.copy(images / "train" / "b" / "0.png", scratch / "fewer" / "train" / "b")
        (scratch / "fewer" / "train" / "a" / "0.png").unlink()
        print("| fault | all had ended after | statuses | the same command then gives | said |\n|---|---|---|---|---|")
        for name, fault in faults(scratch / "elsewhere", scratch / "fewer").items():
            if any(part in name for part in options.only.split(",")):
                line, promised = brought_about(name, fault, scratch, images if fault.streamed else None, server)
                print(line, flush=True)
                if not promised:
                    for path in sorted(scratch.glob(f"{re.sub(r'[^0-9A-Za-z_]+', '-', name)}-?.log")):
                        print(f"--- {path.name}\n{path.read_text(errors='replace')[-1200:]}")
                kept &= promised
    return 0 if kept else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        del sys.argv[1]
        work()
    else:
        sys.exit(main())
