"""Communication of a run's processes over JAX's coordination service, a key-value store in process 0.

It needs no collective of the devices. A function that waits names the missing process when its time is up. A single
process skips all of it.
"""

import json
import socket
import time
from typing import Any

from bt_jax.messages import TRY_AGAIN, UserError

WAIT_SECONDS = 1800  # per barrier: a process may list a million files; the watchdog detects dead ones

_gathered = 0  # how often this process has gathered; part of the keys, so that each is used once


def is_multi_process() -> bool:
    """Whether this process is one of several."""
    return processes() > 1


# These read JAX's record of processes, not its devices: they are called before a device exists, and by threads.


def processes() -> int:
    """The number of processes of the run."""
    return _joined().num_processes


def process() -> int:
    """The number of this process, from 0."""
    return _joined().process_id


def store():
    """The key-value store of the coordination service, or None for a single process.

    It is not public: no public function waits for another process with a time limit.
    """
    return _joined().client


def _joined():
    from jax._src import distributed

    return distributed.global_state


def gather(value: Any, *, barrier: str, seconds: float | None = None) -> list[Any]:
    """The value of every process, in their order; all processes must call it equally often.

    Args:
      value: JSON-able.
      barrier: the name of the barrier for the message about a missing process, such as "the comparison of configs".
      seconds: to wait; WAIT_SECONDS by default.

    Raises:
      UserError: (status 75) a process has not come within `seconds`; it is named.
    """
    global _gathered
    if not is_multi_process():
        return [value]
    _gathered += 1
    seconds = WAIT_SECONDS if seconds is None else seconds
    key = f"bt_jax/gather/{_gathered}"
    store().key_value_set(f"{key}/{process()}", json.dumps([socket.gethostname(), value]))
    deadline, found = time.monotonic() + seconds, []
    for other in range(processes()):
        left = max(int(1000 * (deadline - time.monotonic())), 1)
        try:
            found.append(json.loads(store().blocking_key_value_get(f"{key}/{other}", left))[1])
        except Exception as error:  # jaxlib's own, in no public module
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            here = {int(name.rpartition("/")[2]) for name, _ in store().key_value_dir_get(f"{key}/")}
            absent = ", ".join(str(i) for i in range(processes()) if i not in here)
            raise UserError(
                f"Process {absent} of {processes()} did not come to {barrier} within {seconds:g} s",
                "Read its own output, and start all processes again: the run resumes.",
                status=TRY_AGAIN,
            ) from None
    return found
