"""Several processes as one run: how they find each other, what they compare before they train, how one leaves.

Everything here is small talk over JAX's coordination service, which runs in process 0: no collective of the devices is
needed, and everything that waits says after a time who is missing. With one process nothing of this does anything.
"""

import atexit
import contextlib
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from bt_jax import log, storage
from bt_jax.errors import TRY_AGAIN, UserError

JOIN_SECONDS = 300  # for the others to come at all
WAIT_SECONDS = 1800  # for the others once they have come: one may list a million files; `watchdog` sees who is gone
CAUSE_SECONDS = 3  # for a process that fails to say why, where others notice that it is gone
TELL_SECONDS = 5  # for the others to read why a process ends
SEEN_SECONDS = 15  # for what one host writes to show on another: network file systems keep lists of files for seconds
_gathered = 0  # how often this process has gathered; part of the keys, so that each is used once


def start(address: str | None, number: int | None, own: int | None, *, silent_seconds: float = 60) -> None:
    """Joins the run's other processes; must come before anything that touches a device.

    Args:
      address: HOST:PORT of process 0. None: JAX looks for SLURM, a TPU slice, Kubernetes, Open MPI; where it finds
        none of them this process is alone.
      number: of processes; 1: alone, without looking.
      own: which of them this is, from 0.
      silent_seconds: of `watchdog`, which says more than JAX's own, later, look at who is gone.

    Raises:
      UserError: only some of the three are given, or (status 75) the others do not come.
    """
    if number == 1:
        return
    given = {"--coordinator": address, "--processes": number, "--process": own}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(f"{' and '.join(missing)} not given", f"Give all of {', '.join(given)}, or none of them.")
    # Its handler would take SIGTERM from ours (`stop_signals`), which covers more signals and saves.
    jax.config.update("jax_enable_preemption_service", False)
    where = address or "the first process's machine"
    absent = UserError(
        f"Not all processes came together at {where} within {JOIN_SECONDS} s",
        "Start all of them, with one address that every machine reaches; --processes=1 runs this one alone.",
        status=TRY_AGAIN,
    )
    # JAX would abort, with a stack.
    waiting = threading.Timer(JOIN_SECONDS, lambda: (say_everywhere(str(absent)), end(TRY_AGAIN)))
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            address,
            number,
            own,
            local_device_ids=_the_only_gpu(),
            initialization_timeout=JOIN_SECONDS + 60,
            heartbeat_timeout_seconds=int(max(100, 2 * silent_seconds)),
        )
    except ValueError as error:
        if missing and "should be defined" in str(error):  # JAX found no cluster
            return
        raise UserError(f"The processes cannot be joined: {error}", "See launch/README.md.") from None
    except RuntimeError as error:
        raise absent from error
    finally:
        waiting.cancel()


def _the_only_gpu() -> list[int] | None:
    """[0] where SLURM shows this task one GPU: JAX would ask for the one with the task's number (jax#28194)."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [0] if "SLURM_LOCALID" in os.environ and shown and "," not in shown else None


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
                "See what its own output says, and start all of them again: the run goes on.",
                status=TRY_AGAIN,
            ) from None
    return found


def agree(own: dict[str, Any]) -> None:
    """Compares what must be the same everywhere with what process 0 has, before the first step.

    Args:
      own: this process's names and values; the number and kind of its devices are added.

    Raises:
      UserError: on every process, with the process, its host, and the names that differ.
    """
    if not several():
        return
    own = own | {"devices of a process": jax.local_device_count(), "kind of device": jax.devices()[0].device_kind}
    told = gather([socket.gethostname(), {key: repr(value) for key, value in own.items()}], what="the comparison")
    hosts = sorted({host for host, _ in told})
    log.say(f"{len(told)} processes on {len(hosts)} hosts: {', '.join(hosts[:8])}{', ...' * (len(hosts) > 8)}")
    wrong, first = [], told[0][1]
    for other, (host, values) in enumerate(told):
        keys = [key for key in sorted(first | values) if first.get(key) != values.get(key)]
        if keys:
            shown = ", ".join(f"{key} {values.get(key, 'absent')} not {first.get(key, 'absent')}" for key in keys[:5])
            wrong.append(f"process {other} on {host} has {shown}" + " and more" * (len(keys) > 5))
    if wrong:
        more = f", and {len(wrong) - 3} more processes" if len(wrong) > 3 else ""
        raise UserError(
            f"The processes do not mean the same run: {'; '.join(wrong[:3])}{more}",
            "Give all of them the same command, versions and data.",
        )


def check_shared(folder: Path) -> None:
    """Raises UserError on every process unless all of them see what process 0 writes to the folder."""
    if not several():
        return
    places = gather(os.fspath(folder) if storage.in_bucket(folder) else "a folder of its own", what="the run folder")
    if len(set(places)) > 1:
        other = next(i for i, place in enumerate(places) if place != places[0])
        raise UserError(
            f"The run folder is {places[0]} for process 0 and {places[other]} for process {other}",
            "Give all of them the same --workdir.",
        )
    if storage.in_bucket(folder):
        return
    name = f".together-{gather(secrets.token_hex(8), what='the look at the run folder')[0]}"
    if process() == 0:
        (folder / name).touch()
    gather(None, what="the look at the run folder")
    deadline = time.monotonic() + SEEN_SECONDS
    while not (seen := _is_listed(folder, name)) and time.monotonic() < deadline:
        time.sleep(0.2)
    everywhere = gather([seen, socket.gethostname()], what="the look at the run folder")
    if process() == 0:
        (folder / name).unlink(missing_ok=True)
    blind = [f"process {i} on {host}" for i, (seen, host) in enumerate(everywhere) if not seen]
    if blind:
        raise UserError(
            f"{folder} is not the same folder on all hosts: {', '.join(blind[:5])} cannot see what process 0 writes"
            " there, so that no checkpoint could be put together",
            "Give a --workdir on a file system that all hosts share: NFS, Lustre, Filestore, or in a bucket, gs://…"
            " (launch/README.md).",
        )


def _is_listed(folder: Path, name: str) -> bool:
    try:
        return name in os.listdir(folder)
    except OSError:
        return False


# -------------------------------------------------------------------------------------------------------------- leaving


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Whatever is raised inside and is not an agreed stop ends this process of several by `leave`."""
    try:
        yield
    except SystemExit:
        raise
    except UserError as error:
        if several():
            say_everywhere(str(error))
            leave(error.status, why=str(error))
        raise
    except BaseException as error:
        if several() and _is_of_a_collective(error):
            _leave_with_who_broke_it(error)
        if several():
            traceback.print_exc()
            leave(130 if isinstance(error, KeyboardInterrupt) else 1, why=f"{type(error).__name__}: {error}")
        raise


def _is_of_a_collective(error: BaseException) -> bool:
    """Whether the runtime says that the connection to another process broke, rather than that memory is full, …"""
    text = str(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        return any(word in text for word in ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "Gloo", "NCCL"))
    # What fails while it is dispatched comes as one of these.
    return isinstance(error, ValueError | RuntimeError) and bool(re.search(r"(Gloo|NCCL)\b.* failed", text))


def _leave_with_who_broke_it(error: BaseException) -> None:
    """With the status of the process that has ended, if it tells within a moment why it did."""
    deadline = time.monotonic() + CAUSE_SECONDS
    with contextlib.suppress(Exception):  # the store is gone, too
        while time.monotonic() < deadline:
            for other, told in ended().items():
                why = f"process {other} on {told['host']} has ended: {told['why']}"
                say_everywhere(f"{why}. {ends_with(told['status'])}")
                leave(told["status"], why=why)
            time.sleep(0.1)
    why = f"what all processes do together has failed, most likely because one has ended ({_short(error)})"
    say_everywhere(f"{why}. {ends_with(TRY_AGAIN)}")
    leave(TRY_AGAIN, why=why)


def ends_with(status: int) -> str:
    """The last sentence of a process that is ended."""
    return f"This process ends with status {status}" + ("; the same command goes on" if status == TRY_AGAIN else "")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


def leave(status: int, *, why: str) -> None:
    """Ends a process that failed: tells the others, who end as well within seconds (`watchdog`), and does not return.

    Without it JAX would, at its exit, wait for the others for minutes."""
    told = json.dumps({"status": status, "host": socket.gethostname(), "why": " ".join(why.split())[:400].rstrip(".")})

    def tell():
        with contextlib.suppress(Exception):  # the store is gone, and so are the others
            store().key_value_set(f"bt_jax/ended/{process()}", told, allow_overwrite=True)

    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    telling.join(TELL_SECONDS)  # of a process 0 that was stopped nobody gets an answer
    if process() == 0:  # the store goes with it: the others must have read
        time.sleep(TELL_SECONDS)
    end(status)


def end(status: int) -> None:
    """Ends this process at once, without JAX's wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    atexit.unregister(jax.distributed.shutdown)
    os._exit(status)


def ended() -> dict[int, dict[str, Any]]:
    """{process: {"status", "host", "why"}} of those that have left by `leave`."""
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in store().key_value_dir_get("bt_jax/ended/")}


def say_everywhere(text: str) -> None:
    """One line on stderr of this process, which names itself where there are several."""
    name = f"process {process()} on {socket.gethostname()}: " if several() else ""
    print(f"bt_jax: {name}{text}", file=sys.stderr, flush=True)
