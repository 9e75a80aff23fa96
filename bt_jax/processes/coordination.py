"""What the processes of one run tell each other, over JAX's coordination service, which runs in process 0.

This needs no collective of the devices. A function that waits names the missing process after a time. A single process
skips all of it.
"""

import json
import socket
import time
from typing import Any

from bt_jax.messages import TRY_AGAIN, UserError

WAIT_SECONDS = 1800  # for the others once they have come: one may list a million files; `watchdog` sees who is gone

_gathered = 0  # how often this process has gathered; part of the keys, so that each is used once


def several() -> bool:
    """Whether this process is one of several."""
    return processes() > 1


# Of JAX's own record, not of its devices: these are asked before any device is, and by threads.


def processes() -> int:
    """How many take part."""
    return _joined().num_processes


def process() -> int:
    """Which of them this is."""
    return _joined().process_id


def store():
    """The key-value store of the coordination service, or None: it is not public, and nothing that is public waits for
    another process with a time limit."""
    return _joined().client


def _joined():
    from jax._src import distributed

    return distributed.global_state


def gather(value: Any, *, what: str, seconds: float | None = None) -> list[Any]:
    """Every process's value, in their order; all of them must call it equally often.

    Args:
      value: JSON-able.
      what: told where somebody is missing, such as "the comparison of configs".
      seconds: to wait; WAIT_SECONDS by default.

    Raises:
      UserError: (status 75) a process has not come within `seconds`; it is named.
    """
    global _gathered
    if not several():
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
                f"Process {absent} of {processes()} did not come to {what} within {seconds:g} s",
                "Read its own output, and start all processes again: the run resumes.",
                status=TRY_AGAIN,
            ) from None
    return found
