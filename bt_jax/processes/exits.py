"""How the processes of one run end together, with one cause and one exit status."""

import atexit
import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax

from bt_jax import messages
from bt_jax.messages import TRY_AGAIN, UserError
from bt_jax.processes import coordination

CAUSE_SECONDS = 3  # for a process that fails to say why, where others notice that it is gone
TELL_SECONDS = 5  # for the others to read why a process ends


@contextlib.contextmanager
def failures_end_all() -> Iterator[None]:
    """Whatever is raised inside and is not an agreed stop ends this process of several by `fail_all_processes`."""
    try:
        yield
    except SystemExit:
        raise
    except UserError as error:
        if coordination.is_multi_process():
            print_on_every_process(str(error))
            fail_all_processes(error.status, why=str(error))
        raise
    except BaseException as error:
        if coordination.is_multi_process() and _is_of_a_collective(error):
            _fail_with_the_first_cause(error)
        if coordination.is_multi_process():
            traceback.print_exc()
            fail_all_processes(
                130 if isinstance(error, KeyboardInterrupt) else 1, why=f"{type(error).__name__}: {error}"
            )
        raise


def _is_of_a_collective(error: BaseException) -> bool:
    """Whether the runtime says that the connection to another process broke, rather than that memory is full, …"""
    text = str(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        return any(word in text for word in ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "Gloo", "NCCL"))
    # What fails while it is dispatched comes as one of these.
    return isinstance(error, ValueError | RuntimeError) and bool(re.search(r"(Gloo|NCCL)\b.* failed", text))


def _fail_with_the_first_cause(error: BaseException) -> None:
    """With the status of the process that has ended, if it tells within a moment why it did."""
    deadline = time.monotonic() + CAUSE_SECONDS
    with contextlib.suppress(Exception):  # the store is gone, too
        while time.monotonic() < deadline:
            for other, told in exit_notices().items():
                why = f"process {other} on {told['host']} has ended: {told['why']}"
                print_on_every_process(f"{why}. {exit_sentence(told['status'])}")
                fail_all_processes(told["status"], why=why)
            time.sleep(0.1)
    why = f"what all processes do together has failed, most likely because one has ended ({_short(error)})"
    print_on_every_process(f"{why}. {exit_sentence(TRY_AGAIN)}")
    fail_all_processes(TRY_AGAIN, why=why)


def exit_sentence(status: int) -> str:
    """The last sentence of a process that is ended."""
    return f"This process ends with status {status}" + ("; the same command goes on" if status == TRY_AGAIN else "")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


def fail_all_processes(status: int, *, why: str) -> None:
    """Ends a process that failed: tells the others, who end as well within seconds (`watchdog`), and does not return.

    Without it JAX would, at its exit, wait for the others for minutes."""
    told = json.dumps({"status": status, "host": socket.gethostname(), "why": " ".join(why.split())[:400].rstrip(".")})

    def tell():
        with contextlib.suppress(Exception):  # the store is gone, and so are the others
            coordination.store().key_value_set(f"bt_jax/ended/{coordination.process()}", told, allow_overwrite=True)

    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    telling.join(TELL_SECONDS)  # of a process 0 that was stopped nobody gets an answer
    if coordination.process() == 0:  # the store goes with it: the others must have read
        time.sleep(TELL_SECONDS)
    exit_now(status)


def exit_now(status: int) -> None:
    """Ends this process at once, without JAX's wait for the others."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or its reader is gone
            stream.flush()
    atexit.unregister(jax.distributed.shutdown)
    os._exit(status)


def exit_notices() -> dict[int, dict[str, Any]]:
    """{process: {"status", "host", "why"}} of those that have left by `fail_all_processes`."""
    return {
        int(key.rpartition("/")[2]): json.loads(value)
        for key, value in coordination.store().key_value_dir_get("bt_jax/ended/")
    }


def print_on_every_process(text: str) -> None:
    """One line on stderr of this process, which names itself where there are several."""
    name = f"process {coordination.process()} on {socket.gethostname()}: " if coordination.is_multi_process() else ""
    messages.put(f"bt_jax: {name}{text}", sys.stderr)
