"""Ends all processes of a run together, with one cause and one exit status."""

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

CAUSE_SECONDS = 3  # to wait for the exit notice of a process whose connection broke
TELL_SECONDS = 5  # for the other processes to read an exit notice


@contextlib.contextmanager
def failures_end_all() -> Iterator[None]:
    """In a multi-process run, any exception but an agreed stop (SystemExit) exits through `fail_all_processes`."""
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
    """True if the error means a broken connection to another process, not another failure such as full memory."""
    text = str(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        return any(word in text for word in ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "Gloo", "NCCL"))
    # Failures during dispatch have these types.
    return isinstance(error, ValueError | RuntimeError) and bool(re.search(r"(Gloo|NCCL)\b.* failed", text))


def _fail_with_the_first_cause(error: BaseException) -> None:
    """Exits with the status of the process that failed first, if its notice arrives within CAUSE_SECONDS."""
    deadline = time.monotonic() + CAUSE_SECONDS
    with contextlib.suppress(Exception):  # the store is unreachable too
        while time.monotonic() < deadline:
            for other, notice in exit_notices().items():
                why = f"process {other} on {notice['host']} has ended: {notice['why']}"
                print_on_every_process(f"{why}. {exit_sentence(notice['status'])}")
                fail_all_processes(notice["status"], why=why)
            time.sleep(0.1)
    why = f"a collective of all processes failed, most likely because one process has ended ({_short(error)})"
    print_on_every_process(f"{why}. {exit_sentence(TRY_AGAIN)}")
    fail_all_processes(TRY_AGAIN, why=why)


def exit_sentence(status: int) -> str:
    """The last sentence of the message of a process that exits."""
    return f"This process exits with status {status}" + ("; the same command resumes" if status == TRY_AGAIN else "")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


def fail_all_processes(status: int, *, why: str) -> None:
    """Publishes an exit notice, which makes all processes exit within seconds (`watchdog`), and exits this process.

    Otherwise JAX would wait at exit for minutes for the other processes.
    """
    notice = {"status": status, "host": socket.gethostname(), "why": " ".join(why.split())[:400].rstrip(".")}

    def publish():
        with contextlib.suppress(Exception):  # the store is unreachable, so the others fail anyway
            coordination.store().key_value_set(
                f"bt_jax/ended/{coordination.process()}", json.dumps(notice), allow_overwrite=True
            )

    publishing = threading.Thread(target=publish, daemon=True)
    publishing.start()
    publishing.join(TELL_SECONDS)  # a stopped process 0 never answers
    if coordination.process() == 0:  # it hosts the store, so the others must read the notice before its exit
        time.sleep(TELL_SECONDS)
    exit_now(status)


def exit_now(status: int) -> None:
    """Exits this process at once, without JAX's wait for the other processes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a closed stream or pipe
            stream.flush()
    atexit.unregister(jax.distributed.shutdown)
    os._exit(status)


def exit_notices() -> dict[int, dict[str, Any]]:
    """{process: {"status", "host", "why"}} of the processes that have exited through `fail_all_processes`."""
    return {
        int(key.rpartition("/")[2]): json.loads(value)
        for key, value in coordination.store().key_value_dir_get("bt_jax/ended/")
    }


def print_on_every_process(text: str) -> None:
    """Prints one line on stderr of this process, with its number and host in a multi-process run.

    Unlike `messages.say` it prints on every process that calls it.
    """
    name = f"process {coordination.process()} on {socket.gethostname()}: " if coordination.is_multi_process() else ""
    messages.put(f"bt_jax: {name}{text}", sys.stderr)
