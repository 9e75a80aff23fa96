"""Joins several processes to one run, and compares their settings before training."""

import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

import jax

from bt_jax import messages, storage
from bt_jax.messages import TRY_AGAIN, UserError
from bt_jax.processes import coordination, exits

JOIN_SECONDS = 300  # timeout for the start of all processes
SEEN_SECONDS = 15  # for a new file of one host to appear on another: network file systems cache listings for seconds


def start(address: str | None, number: int | None, own: int | None, *, silent_seconds: float = 60) -> None:
    """Joins the other processes of the run; must be called before any use of a device.

    Args:
      address: HOST:PORT of process 0. None: JAX searches for SLURM, a TPU slice, Kubernetes, Open MPI; if it finds none
        of them, this process is alone.
      number: number of processes; 1: this process is alone, and JAX does not search.
      own: the number of this process, from 0.
      silent_seconds: timeout of the watchdog. JAX's own timeout is set to a later time, because its message says less.

    Raises:
      UserError: only some of the three are given, or (status 75) the other processes do not start in time.
    """
    if number == 1:
        return
    given = {"--coordinator": address, "--processes": number, "--process": own}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(
            f"Options are missing: {', '.join(missing)}", f"Give all of {', '.join(given)}, or none of them."
        )
    # JAX's handler would replace ours for SIGTERM (`stop_signals`), which handles more signals and saves.
    jax.config.update("jax_enable_preemption_service", False)
    where = address or "the first process's machine"
    absent = UserError(
        f"Not all processes joined at {where} within {JOIN_SECONDS} s",
        "Start all of them, with one address that every machine can reach; --processes=1 runs this one alone.",
        status=TRY_AGAIN,
    )
    # JAX itself would abort with a stack trace.
    waiting = threading.Timer(
        JOIN_SECONDS, lambda: (exits.print_on_every_process(str(absent)), exits.exit_now(TRY_AGAIN))
    )
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
    """[0] if SLURM gives this task one GPU, else None: JAX would use the GPU with the task's number (jax#28194)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [0] if "SLURM_LOCALID" in os.environ and visible and "," not in visible else None


def check_identical(own: dict[str, Any]) -> None:
    """Compares values that must be equal on all processes with those of process 0, before the first step.

    Args:
      own: names and values of this process; the number and kind of its devices are added.

    Raises:
      UserError: raised on every process; names the differing process, its host, and the values.
    """
    if not coordination.is_multi_process():
        return
    own = own | {"devices of a process": jax.local_device_count(), "kind of device": jax.devices()[0].device_kind}
    gathered = coordination.gather(
        [socket.gethostname(), {key: repr(value) for key, value in own.items()}], barrier="the comparison"
    )
    hosts = sorted({host for host, _ in gathered})
    names = f"{', '.join(hosts[:8])}{', ...' * (len(hosts) > 8)}"
    messages.say(f"{len(gathered)} processes on {messages.counted(len(hosts), 'host')}: {names}")
    wrong, first = [], gathered[0][1]
    for other, (host, values) in enumerate(gathered):
        keys = [key for key in sorted(first | values) if first.get(key) != values.get(key)]
        if keys:
            different = ", ".join(
                f"{key} {values.get(key, 'absent')} not {first.get(key, 'absent')}" for key in keys[:5]
            )
            wrong.append(f"process {other} on {host} has {different}" + " and more" * (len(keys) > 5))
    if wrong:
        more = f", and {len(wrong) - 3} more processes" if len(wrong) > 3 else ""
        raise UserError(
            f"The processes have different settings: {'; '.join(wrong[:3])}{more}",
            "Give all of them the same command, versions and data.",
        )


def check_shared(folder: Path) -> None:
    """Raises UserError on every process unless all of them see what process 0 writes to the folder."""
    if not coordination.is_multi_process():
        return
    places = coordination.gather(
        os.fspath(folder) if storage.in_bucket(folder) else "a local folder", barrier="the run folder"
    )
    if len(set(places)) > 1:
        other = next(i for i, place in enumerate(places) if place != places[0])
        raise UserError(
            f"The run folder is {places[0]} for process 0 and {places[other]} for process {other}",
            "Give all of them the same --workdir.",
        )
    if storage.in_bucket(folder):
        return
    name = f".together-{coordination.gather(secrets.token_hex(8), barrier='the check of the run folder')[0]}"
    if coordination.process() == 0:
        (folder / name).touch()
    coordination.gather(None, barrier="the check of the run folder")
    deadline = time.monotonic() + SEEN_SECONDS
    while not (seen := _is_listed(folder, name)) and time.monotonic() < deadline:
        time.sleep(0.2)
    everywhere = coordination.gather([seen, socket.gethostname()], barrier="the check of the run folder")
    if coordination.process() == 0:
        (folder / name).unlink(missing_ok=True)
    without = [f"process {i} on {host}" for i, (seen, host) in enumerate(everywhere) if not seen]
    if without:
        raise UserError(
            f"{folder} is not the same folder on all hosts: {', '.join(without[:5])} cannot see the files of"
            " process 0 there, so no checkpoint would be complete",
            "Give a --workdir on a file system that all hosts share: NFS, Lustre, Filestore, or in a bucket, gs://…"
            " (launch/README.md).",
        )


def _is_listed(folder: Path, name: str) -> bool:
    try:
        return name in os.listdir(folder)
    except OSError:
        return False
