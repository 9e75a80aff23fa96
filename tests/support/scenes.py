"""One of two processes that talk and compute nothing, for `test_cluster`.

    python -m tests.support.scenes SCENE ADDRESS PROCESS FOLDER

Prints one JSON line of what it found.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from bt_jax import cluster, watch
from bt_jax.errors import UserError
from bt_jax.stopping import Stop, Stopped


def refusal(call, *arguments, **options) -> str:
    try:
        call(*arguments, **options)
    except UserError as error:
        return str(error)
    return ""


def talk(folder: Path) -> dict:
    me = cluster.process()
    found = {"gathered": cluster.gather([me, "x"], what="a test")}
    found["agreed"] = refusal(cluster.agree, {"rate": 0.1, "images": 7})
    found["disagreed"] = refusal(cluster.agree, {"rate": 0.1 + me, "images": 7, **({"extra": 1} if me else {})})
    found["shared"] = refusal(cluster.check_shared, folder)
    cluster.SEEN_SECONDS = 1
    apart = folder / str(me)
    apart.mkdir()
    found["apart"] = refusal(cluster.check_shared, apart)
    found["left"] = sorted(path.name for path in [*folder.iterdir(), *apart.iterdir()])
    # Process 0 is hasty, process 1 slow: their hosts are several windows apart when one of them is told to stop.
    stop, at, windows = Stop(0), 0, []
    while not stop.before(at, at + 3):
        windows.append(at)
        at += 3
        time.sleep(0.01 if me == 0 else 0.05)
        if me == 1 and at == 30:
            os.kill(os.getpid(), signal.SIGUSR1)
        if at > 3000:
            break
    stop.close(at)
    found |= {"stopped_at": at, "windows": len(windows), "signal": int(stop.signal)}
    if me == 0:
        found["absent"] = refusal(cluster.gather, 0, what="dinner", seconds=1)
        time.sleep(1)
    else:
        time.sleep(2)  # does not come
    return found


def late(folder: Path) -> dict:
    """Process 1 is told to stop when it has taken its last window, and process 0 is not."""
    del folder
    stop = Stop(0)
    found = {"before": stop.before(0, 3)}
    if cluster.process() == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    found |= {"after": stop.after_all(), "signal": int(stop.signal)}
    stop.close(3)
    return found


def silent(folder: Path) -> dict:
    """The process that the folder is named after stops; nobody is there to wake it."""
    watch.begin(stuck_seconds=0, silent_seconds=3)
    cluster.gather(None, what="a test")
    time.sleep(2)
    if cluster.process() == int(folder.name):
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)
    return {}


def mistake(folder: Path) -> dict:
    del folder
    watch.begin(stuck_seconds=0, silent_seconds=30)
    with cluster.leaving():
        if cluster.process() == 1:
            raise UserError("There is no folder /x", "Name another.")
        cluster.gather(None, what="a test", seconds=60)
    return {}


def broken(folder: Path) -> dict:
    """Process 0 sees a broken collective before it hears that process 1 made a mistake."""
    del folder
    watch.begin(stuck_seconds=0, silent_seconds=30)
    with cluster.leaving():
        if cluster.process() == 0:
            raise ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
        time.sleep(1)
        raise UserError("There is no folder /x", "Name another.")
    return {}


def unequal(folder: Path) -> dict:
    """Process 1 is through long before process 0."""
    del folder
    watch.begin(stuck_seconds=0, silent_seconds=4)
    cluster.gather(None, what="a test")
    time.sleep(9 if cluster.process() == 0 else 1)
    watch.end()
    return {}


def told_to_stop(folder: Path) -> dict:
    """An agreed stop is no failure: the status is everybody's own, and JAX's exit is waited for."""
    del folder
    watch.begin(stuck_seconds=0, silent_seconds=30)
    try:
        with cluster.leaving():
            raise Stopped(143)
    finally:
        watch.end()


if __name__ == "__main__":
    scene, address, process, folder = sys.argv[1:]
    cluster.start(address, 2, int(process))
    scenes = {"talk": talk, "late": late, "silent": silent, "mistake": mistake, "broken": broken, "unequal": unequal}
    print(json.dumps((scenes | {"stop": told_to_stop})[scene](Path(folder))))
