"""Communication of a run's processes over JAX's coordination service, a key-value store in process 0.

It needs no device collective. After a timeout, the error names the missing process. With a single process these
functions return at once.
"""

import json
import socket
import time
from typing import Any

from bt_jax.messages import TRY_AGAIN, UserError

WAIT_SECONDS = 1800  # per barrier: a process may list a million files; the watchdog detects dead ones

_gathered = 0  # number of calls of `gather`; it makes the keys unique


def is_multi_process() -> bool:
    """Whether the run has several processes."""
    return processes() > 1


# These functions read JAX's record of processes, not its devices, because threads call them before a device exists.


def processes() -> int:
    """The number of processes of the run."""
    return _joined().num_processes


def process() -> int:
    """The number of this process, from 0."""
    return _joined().process_id


def store():
    """The key-value store of the coordination service; None for a single process.

    It is not a public API, but no public function waits for another process with a timeout.
    """
    return _joined().client


def _joined():
    from jax._src import distributed

    return distributed.global_state


def gather(value: Any, *, barrier: str, seconds: float | None = None) -> list[Any]:
    """Returns the values of all processes in their order; every process must call it equally often.

    Args:
      value: JSON-able.
      barrier: the name of the barrier for the message about a missing process, such as "the comparison of configs".
      seconds: timeout; WAIT_SECONDS by default.

    Raises:
      UserError: (status 75) a process has not called it within `seconds`; the message names it.
    """
    global _gathered
    if not is_multi_process():
        return [value]
    _gathered += 1
    seconds = WAIT_SECONDS if seconds is None else seconds
    key = f"bt_jax/gather/{_gathered}"
    store().key_value_set(f"{key}/{process()}", json.dumps([socket.gethostname(), value]))
    deadline, values = time.monotonic() + seconds, []
    for other in range(processes()):
        left = max(int(1000 * (deadline - time.monotonic())), 1)
        try:
            values.append(json.loads(store().blocking_key_value_get(f"{key}/{other}", left))[1])
        except Exception as error:  # a type of jaxlib that is in no public module
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            arrived = {int(name.rpartition("/")[2]) for name, _ in store().key_value_dir_get(f"{key}/")}
            absent = ", ".join(str(i) for i in range(processes()) if i not in arrived)
            raise UserError(
                f"Process {absent} of {processes()} did not reach {barrier} within {seconds:g} s",
                "Check its output, then restart all processes; the run will resume.",
                status=TRY_AGAIN,
            ) from None
    return values
