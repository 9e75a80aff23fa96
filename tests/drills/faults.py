"""Causes faults in one process of a run of several processes, and checks how the run ends and resumes.

    python -m tests.drills.faults [--only=NAME,…]

The run is the small one of `kills.py`, in two or four processes on this machine with two simulated devices each. Each
fault happens after some steps or at the start. The drill prints the time until the last process has exited, all exit
statuses, the message, and whether the same command then gives the arrays of an uninterrupted run.
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

from tests.drills.kills import TINY, Run, hashes
from tests.support import bucket
from tests.support.drawn_images import draw_folder
from tests.support.paths import ROOT
from tests.support.processes import free_address

FAULT_STEP = 6  # the fault happens after this number of steps
SILENT, STUCK = 10, 15  # seconds; the defaults are 60 and 3600
OPTIONS = TINY | {"watch.silent_seconds": SILENT, "watch.stuck_seconds": STUCK, "compile_cache": ""}


class Fault(NamedTuple):
    """A fault and its expected outcome.

    Attributes:
      message: pattern of a line that at least one process must print.
      statuses: expected exit status of every process; a tuple: one of these; None: the victim, with any status but 0.
      act: act(processes, bucket) causes the fault after `FAULT_STEP` steps.
      bucket: the run folder is in a bucket.
      options: config keys of process 1 only.
      fault: a fault that process 1 causes in itself; see `run_process`.
      resumes: the same command without the fault must give the same run.
      streamed: the run reads image files.
      devices: number of devices of each process.
    """

    message: str
    statuses: tuple[int | tuple[int, ...] | None, ...]
    act: Callable | None = None
    bucket: bool = False
    options: dict[str, str] = {}
    fault: str = ""
    resumes: bool = True
    streamed: bool = False
    devices: int = 2


def send(number: signal.Signals, process: int) -> Callable:
    """An action that sends a signal to one process."""
    return lambda running, server: running[process].send_signal(number)


def refuse(running: list[subprocess.Popen], server: bucket.Bucket) -> None:
    """An action that makes the bucket answer 503."""
    server.refuses = 503


def faults(elsewhere: Path, fewer: Path) -> dict[str, Fault]:
    """All faults by name. `elsewhere` is another run folder, `fewer` a data set with fewer images."""
    dead = "(has been silent|is down|because one process has ended)"
    return {
        "kill -9, process 1": Fault(dead, (75, None), send(signal.SIGKILL, 1)),
        "kill -9, process 1, one device each": Fault(dead, (75, None), send(signal.SIGKILL, 1), devices=1),
        # JAX aborts a process without coordination service, unless `watchdog` or a collective fails first.
        "kill -9, process 0": Fault("", (None, (75, -signal.SIGABRT)), send(signal.SIGKILL, 0)),
        "kill -9, process 2 of 4": Fault(dead, (75, 75, None, 75), send(signal.SIGKILL, 2)),
        "SIGSTOP, process 1": Fault("process 1 .* silent", (75, None), send(signal.SIGSTOP, 1)),
        "SIGSTOP, process 0": Fault("process 0 .* silent", (None, 75), send(signal.SIGSTOP, 0)),
        "SIGTERM, process 1": Fault("SIGTERM: saving", (143, 143), send(signal.SIGTERM, 1)),
        "SIGUSR1, process 0 of 4": Fault("SIGUSR1: saving", (138,) * 4, send(signal.SIGUSR1, 0)),
        "kill -9, process 1, in a bucket": Fault(dead, (75, None), send(signal.SIGKILL, 1), bucket=True),
        "SIGTERM, process 1, in a bucket": Fault("SIGTERM: saving", (143, 143), send(signal.SIGTERM, 1), bucket=True),
        # gcsfs retries for about half a minute; `stuck_seconds` is shorter here.
        "the bucket answers 503 from then on": Fault("(no step for|cannot be)", (75, 75), refuse, bucket=True),
        "stuck, process 1": Fault("no step for .*Process 1 on .* is behind the others", (75, 75), fault="stuck"),
        "an exception, process 1": Fault("process 1 .* has ended: ValueError: planted", (1, 1), fault="raise"),
        "slow data, process 1": Fault("most waiting: process 1", (0, 0), fault="slow", streamed=True),
        "another learning rate": Fault(
            "process 1 .* config.optim.lr_weights", (2, 2), options={"config.optim.lr_weights": "0.1"}, resumes=False
        ),
        "fewer images": Fault(
            "process 1 .* images 32 not 64",
            (2, 2),
            options={"config.data.folder": str(fewer)},
            resumes=False,
            streamed=True,
        ),
        "no images": Fault("no-such-folder", (2, 2), options={"config.data.folder": "/no-such-folder"}, resumes=False),
        "run folder not shared": Fault(
            "not the same folder on all hosts: process 1", (2, 2), options={"workdir": str(elsewhere)}, resumes=False
        ),
        "only one of two starts": Fault("Not all processes joined", (75,), fault="absent"),
    }


def run_process() -> None:
    """Runs bt_jax.main as one process, with the fault in $FAULT."""
    fault = os.environ.get("FAULT", "")
    from bt_jax import main
    from bt_jax.data import prefetch
    from bt_jax.processes import join, watchdog

    join.JOIN_SECONDS = 30
    if fault in ("stuck", "raise"):
        report = watchdog.report_progress

        def at(step, phase, *more, **options):
            report(step, phase, *more, **options)
            if step >= FAULT_STEP and phase == watchdog.Phase.TRAINING:
                if fault == "raise":
                    raise ValueError("planted")
                time.sleep(3600)

        watchdog.report_progress = at
    if fault == "slow":
        run_ahead = prefetch._run_ahead

        def slow(iterator):
            for batch in iterator:
                time.sleep(0.5)
                yield batch

        prefetch._run_ahead = lambda iterator, *rest: run_ahead(slow(iterator), *rest)
    main.run()


def start(run: Run, count: int, fault: Fault, images: Path | None) -> list[subprocess.Popen]:
    """Starts all processes of a run, with their output in files beside the run folder."""
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
        own_environment = environment | ({"FAULT": fault.fault} if process == 1 else {})
        with (run.scratch / f"{run.name}-{process}.log").open("a") as log:
            running.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "tests.drills.faults",
                        "run_process",
                        *(f"--{k}={v}" for k, v in flags.items()),
                    ],
                    cwd=ROOT,
                    env=own_environment,
                    stdout=log,
                    stderr=log,
                )
            )
    return running


def try_fault(name: str, fault: Fault, scratch: Path, images: Path | None, server) -> tuple[str, bool]:
    """Causes the fault; returns a line of the table, and True if the outcome is as expected."""
    count = 4 if name.endswith("of 4") else 2
    run = Run(scratch, re.sub(r"\W+", "-", name), server if fault.bucket else None)
    running = start(run, count, fault, images)
    began = time.monotonic()
    if fault.act:
        while run.steps() < FAULT_STEP and all(process.poll() is None for process in running):
            time.sleep(0.05)
        began = time.monotonic()
        fault.act(running, server)
    exited, victims = {}, [i for i, status in enumerate(fault.statuses) if status is None]
    while time.monotonic() - began < 180 and len(exited) < len(running) - (fault.act is not None and len(victims) == 1):
        for i, process in enumerate(running):
            if i not in exited and process.poll() is not None and not (fault.act and victims == [i]):
                exited[i] = time.monotonic() - began
        time.sleep(0.05)
    for process in running:
        process.kill()
    statuses = [process.wait() for process in running]
    output = "".join(path.read_text(errors="replace") for path in sorted(scratch.glob(f"{run.name}-?.log")))
    right = [
        status != 0 if expected is None else status in (expected if isinstance(expected, tuple) else (expected,))
        for status, expected in zip(statuses, fault.statuses, strict=False)
    ]
    as_expected = all(right) and bool(re.search(fault.message, output))
    resumed, server.refuses = "-", 0
    if fault.resumes:
        no_fault = Fault("", (), devices=fault.devices)
        for process in (again := start(run, count, no_fault, images)):
            process.wait()
        same = all(process.returncode == 0 for process in again)
        same = same and hashes(run.workdir) == whole(scratch, count, no_fault, images)
        resumed, as_expected = "the same run" if same else "ANOTHER RUN", as_expected and same
    line = next((line for line in output.splitlines() if fault.message and re.search(fault.message, line)), "")
    row = f"| {name} | {max(exited.values(), default=180):.0f} s | {', '.join(map(str, statuses))} | {resumed} |"
    return f"{row} {line.removeprefix('bt_jax: ')[:150]} |" + ("" if as_expected else " NOT AS EXPECTED"), as_expected


def whole(scratch: Path, count: int, no_fault: Fault, images: Path | None) -> tuple[str, str]:
    """The hashes of an uninterrupted run, which is made once."""
    run = Run(scratch, f"whole-{count}-{no_fault.devices}-{bool(images)}")
    if not run.workdir.exists():
        for process in start(run, count, no_fault, images):
            process.wait()
    return hashes(run.workdir)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of faults, or parts of names")
    options = parser.parse_args(arguments)
    all_as_expected = True
    with tempfile.TemporaryDirectory() as folder, bucket.running() as server:
        os.environ.update(bucket.environment(server.server_port))
        scratch = Path(folder)
        images = draw_folder(scratch / "images")
        shutil.copytree(images, scratch / "fewer")
        shutil.rmtree(scratch / "fewer" / "train" / "b")
        (scratch / "fewer" / "train" / "b").mkdir()
        shutil.copy(images / "train" / "b" / "0.png", scratch / "fewer" / "train" / "b")
        (scratch / "fewer" / "train" / "a" / "0.png").unlink()
        print("| fault | all exited after | statuses | the same command then gives | message |\n|---|---|---|---|---|")
        for name, fault in faults(scratch / "elsewhere", scratch / "fewer").items():
            if any(part in name for part in options.only.split(",")):
                line, as_expected = try_fault(name, fault, scratch, images if fault.streamed else None, server)
                print(line, flush=True)
                if not as_expected:
                    for path in sorted(scratch.glob(f"{re.sub(r'[^0-9A-Za-z_]+', '-', name)}-?.log")):
                        print(f"--- {path.name}\n{path.read_text(errors='replace')[-1200:]}")
                all_as_expected &= as_expected
    return 0 if all_as_expected else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["run_process"]:
        del sys.argv[1]
        run_process()
    else:
        sys.exit(main())
