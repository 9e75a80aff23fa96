"""Scenes of two processes that talk and compute nothing, for `tests/processes/test_join.py`.

    python -m tests.support.scenes FOLDER SCENE ...

All scenes are played at the same time, by processes that are forked from this one, which has imported what they need. A
scene is FOLDER/SCENE; what its process 0 says is in the files 0.out, with one JSON line of what it found, 0.err and
0.status there.
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


def refusal(call, *arguments, **options) -> str:
    try:
        call(*arguments, **options)
    except UserError as error:
        return str(error)
    return ""


def talk(folder: Path) -> dict:
    me = coordination.process()
    found = {"gathered": coordination.gather([me, "x"], barrier="a test")}
    found["agreed"] = refusal(join.check_identical, {"rate": 0.1, "images": 7})
    found["disagreed"] = refusal(join.check_identical, {"rate": 0.1 + me, "images": 7, **({"extra": 1} if me else {})})
    found["shared"] = refusal(join.check_shared, folder)
    join.SEEN_SECONDS = 1
    apart = folder / str(me)
    apart.mkdir()
    found["apart"] = refusal(join.check_shared, apart)
    found["left"] = sorted(path.name for path in [*folder.iterdir(), *apart.iterdir()])
    # Process 0 is hasty, process 1 slow: their hosts are several windows apart when one of them is told to stop.
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
    found |= {"stopped_at": at, "windows": len(windows), "signal": int(stop.signal)}
    if me == 0:
        found["absent"] = refusal(coordination.gather, 0, barrier="dinner", seconds=1)
        time.sleep(1)
    else:
        time.sleep(2)  # does not come
    return found


def late(folder: Path) -> dict:
    """Process 1 is told to stop when it has taken its last window, and process 0 is not."""
    del folder
    stop = StopSignals(0)
    found = {"before": stop.requested_before(0, 3)}
    if coordination.process() == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    found |= {"after": stop.requested_anywhere(), "signal": int(stop.signal)}
    stop.close()
    return found


def silent(folder: Path) -> dict:
    """The process that the folder is named after stops; nobody is there to wake it."""
    watchdog.begin(stuck_seconds=0, silent_seconds=3)
    coordination.gather(None, barrier="a test")
    time.sleep(2)
    if coordination.process() == int(folder.name):
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)
    return {}


def mistake(folder: Path) -> dict:
    del folder
    watchdog.begin(stuck_seconds=0, silent_seconds=30)
    with exits.failures_end_all():
        if coordination.process() == 1:
            raise UserError("There is no folder /x", "Name another.")
        coordination.gather(None, barrier="a test", seconds=60)
    return {}


def broken(folder: Path) -> dict:
    """Process 0 sees a broken collective before it hears that process 1 made a mistake."""
    del folder
    watchdog.begin(stuck_seconds=0, silent_seconds=30)
    with exits.failures_end_all():
        if coordination.process() == 0:
            raise ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
        time.sleep(1)
        raise UserError("There is no folder /x", "Name another.")
    return {}


def unequal(folder: Path) -> dict:
    """Process 1 is through long before process 0."""
    del folder
    watchdog.begin(stuck_seconds=0, silent_seconds=4)
    coordination.gather(None, barrier="a test")
    time.sleep(9 if coordination.process() == 0 else 1)
    watchdog.end()
    return {}


def told_to_stop(folder: Path) -> dict:
    """An agreed stop is no failure: the status is everybody's own, and JAX's exit is waited for."""
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
    "stop": told_to_stop,
}


def play(scene: str, process: int, port: int, folder: Path) -> None:
    """As the process that this one was forked for."""
    for name, descriptor in {"out": 1, "err": 2}.items():
        os.dup2(os.open(folder / f"{process}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
    join.start(f"localhost:{port}", 2, process)
    print(json.dumps(SCENES[scene](folder)))


def see_to_the_end(running: dict[int, tuple[Path, int]]) -> None:
    """Writes down how each process ends; who was stopped is killed when all others have ended."""
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
    with contextlib.ExitStack() as stack:  # all ports at once, else two scenes could be given one
        free = [stack.enter_context(socket.socket()) for _ in scenes]
        for each in free:
            each.bind(("localhost", 0))
        ports = [each.getsockname()[1] for each in free]
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
    see_to_the_end(running)


if __name__ == "__main__":
    main(*sys.argv[1:])
