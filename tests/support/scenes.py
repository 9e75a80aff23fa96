"""Scenes of two processes that communicate and compute nothing, for `tests/processes/test_join.py`.

    python -m tests.support.scenes FOLDER SCENE ...

All scenes run at the same time. Their processes are forks of this process and share its imports. Process 0 of a scene
writes its output to FOLDER/SCENE/0.out and 0.err. The last line of 0.out is its result, in JSON. The file 0.status has
its exit status. Process 1 writes 1.out, 1.err and 1.status.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from bt_jax.messages import UserError
from bt_jax.processes import coordination, exits, join, watchdog
from bt_jax.processes.stop_signals import Stopped, StopSignals


def error_of(call, *arguments, **options) -> str:
    """The text of the UserError that the call raises, or ""."""
    try:
        call(*arguments, **options)
    except UserError as error:
        return str(error)
    return ""


def talk(folder: Path) -> dict:
    """Gathers, compares and stops; returns the results."""
    me = coordination.process()
    result = {"gathered": coordination.gather([me, "x"], barrier="a test")}
    result["agreed"] = error_of(join.check_identical, {"rate": 0.1, "images": 7})
    result["disagreed"] = error_of(
        join.check_identical, {"rate": 0.1 + me, "images": 7, **({"extra": 1} if me else {})}
    )
    result["shared"] = error_of(join.check_shared, folder)
    join.SEEN_SECONDS = 1
    apart = folder / str(me)
    apart.mkdir()
    result["apart"] = error_of(join.check_shared, apart)
    result["left"] = sorted(path.name for path in [*folder.iterdir(), *apart.iterdir()])
    # Process 0 is fast, process 1 slow: they are several windows apart when process 1 gets a signal to stop.
    stop, at, windows = StopSignals(0), 0, []
    while not stop.requested_before(at, at + 3):
        windows.append(at)
        at += 3
        time.sleep(0.01 if me == 0 else 0.05)
        if me == 1 and at == 30:
            os.kill(os.getpid(), signal.SIGUSR1)
        if at > 3000:
            break
    stop.close()
    result |= {"stopped_at": at, "windows": len(windows), "signal": int(stop.signal)}
    if me == 0:
        result["absent"] = error_of(coordination.gather, 0, barrier="dinner", seconds=1)
        time.sleep(1)
    else:
        time.sleep(2)  # process 1 misses the last `gather`
    return result


def late(folder: Path) -> dict:
    """Process 1 alone gets a signal to stop, after its last window."""
    del folder
    stop = StopSignals(0)
    result = {"before": stop.requested_before(0, 3)}
    if coordination.process() == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    result |= {"after": stop.requested_anywhere(), "signal": int(stop.signal)}
    stop.close()
    return result


def silent(folder: Path) -> dict:
    """The process in the folder's name receives SIGSTOP and never continues."""
    watchdog.begin(stuck_seconds=0, silent_seconds=3)
    coordination.gather(None, barrier="a test")
    time.sleep(2)
    if coordination.process() == int(folder.name):
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)
    return {}


def mistake(folder: Path) -> dict:
    """Process 1 raises a UserError while process 0 waits for it."""
    del folder
    watchdog.begin(stuck_seconds=0, silent_seconds=30)
    with exits.failures_end_all():
        if coordination.process() == 1:
            raise UserError("There is no folder /x", "Name another.")
        coordination.gather(None, barrier="a test", seconds=60)
    return {}


def broken(folder: Path) -> dict:
    """The collective of process 0 fails before the UserError of process 1 reaches process 0."""
    del folder
    watchdog.begin(stuck_seconds=0, silent_seconds=30)
    with exits.failures_end_all():
        if coordination.process() == 0:
            raise ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
        time.sleep(1)
        raise UserError("There is no folder /x", "Name another.")
    return {}


def unequal(folder: Path) -> dict:
    """Process 1 finishes long before process 0."""
    del folder
    watchdog.begin(stuck_seconds=0, silent_seconds=4)
    coordination.gather(None, barrier="a test")
    time.sleep(9 if coordination.process() == 0 else 1)
    watchdog.end()
    return {}


def stop_together(folder: Path) -> dict:
    """Both processes stop by agreement. That is no failure: each keeps its own status and waits for JAX's exit."""
    del folder
    watchdog.begin(stuck_seconds=0, silent_seconds=30)
    try:
        with exits.failures_end_all():
            raise Stopped(143)
    finally:
        watchdog.end()


SCENES = {
    "talk": talk,
    "late": late,
    "silent/0": silent,
    "silent/1": silent,
    "mistake": mistake,
    "broken": broken,
    "unequal": unequal,
    "stop": stop_together,
}


def play(scene: str, process: int, port: int, folder: Path) -> None:
    """Runs a scene in this fork, with its output in files of the folder."""
    for name, descriptor in {"out": 1, "err": 2}.items():
        os.dup2(os.open(folder / f"{process}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
    join.start(f"localhost:{port}", 2, process)
    print(json.dumps(SCENES[scene](folder)))


def wait_for_all(running: dict[int, tuple[Path, int]]) -> None:
    """Writes the exit status of each process to a file. Kills the stopped processes when all others have exited."""
    stopped = []
    while len(stopped) < len(running):
        pid, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            stopped.append(pid)
        else:
            folder, process = running.pop(pid)
            (folder / f"{process}.status").write_text(str(os.waitstatus_to_exitcode(status)))
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)


def main(root: str, *scenes: str) -> None:
    with contextlib.ExitStack() as stack:  # binds all ports at once, so that no two scenes get the same one
        sockets = [stack.enter_context(socket.socket()) for _ in scenes]
        for free in sockets:
            free.bind(("localhost", 0))
        ports = [free.getsockname()[1] for free in sockets]
    running = {}
    for scene, port in zip(scenes, ports, strict=True):
        folder = Path(root) / scene
        folder.mkdir(parents=True)
        for process in range(2):
            pid = os.fork()
            if not pid:
                play(scene, process, port, folder)
                return
            running[pid] = folder, process
    wait_for_all(running)


if __name__ == "__main__":
    main(*sys.argv[1:])
