"""Locks a folder for one run at a time. A second start fails with a line that names the host and process of the first.

On a local disk, and on NFS (Linux forwards the lock to the server), the kernel locks FOLDER/.lock. The lock ends with
its process in every case. In a bucket, and on a file system without locks, the process renews .lock every BEAT_SECONDS.
Another start watches the file for WATCH_SECONDS: it fails if the file changes, and otherwise takes the folder. A
process that was silent for longer, and so lost its folder, exits with status 75.

The first process of a multi-process run holds the lock.
"""

import contextlib
import fcntl
import functools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bt_jax import storage
from bt_jax.messages import TRY_AGAIN, UserError
from bt_jax.processes import coordination, exits

NAME = ".lock"
TRIES, PAUSE_SECONDS = 5, 0.1  # retries, because `check_free` of another start locks for a moment
BEAT_SECONDS, WATCH_SECONDS, SETTLE_SECONDS = 5.0, 20.0, 1.0

_held: dict[str, "_Kernel | _Beats"] = {}  # by folder, of this process


def check_free(folder: Path) -> None:
    """Raises UserError if another process holds the folder; reads and makes nothing. Buckets are not checked."""
    path = folder / NAME
    if coordination.process() or storage.in_bucket(folder) or os.fspath(folder) in _held or not path.is_file():
        return
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(path) from None


def hold(folder: Path) -> None:
    """Locks an existing folder until `release` or the end of this process.

    Raises:
      UserError: another process holds it, or it is not writable.
    """
    key = os.fspath(folder)
    if coordination.process() or key in _held:
        return
    path = folder / NAME
    _held[key] = (None if storage.in_bucket(folder) else _kernel(path)) or _Beats(path)


def release() -> None:
    """Unlocks every folder that this process holds."""
    while _held:
        _held.popitem()[1].close()


def releasing(run: Callable) -> Callable:
    """Decorates a function that locks a folder: its return or exception unlocks the folder."""

    @functools.wraps(run)
    def wrapped(*arguments, **named):
        try:
            return run(*arguments, **named)
        finally:
            release()

    return wrapped


class _Kernel:
    """An exclusive lock of the kernel on a file; `close` deletes the file.

    Raises:
      BlockingIOError: another process has the lock.
      OSError: the file system has no locks.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            fix = "Give a writable folder."
            raise UserError(f"Nothing can be written to {path.parent}: {error.strerror}", fix) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not (path.exists() and os.path.samestat(os.fstat(self._descriptor), path.stat())):
                raise BlockingIOError  # the previous holder has just deleted this file
        except BaseException:
            os.close(self._descriptor)
            raise
        with contextlib.suppress(OSError):  # on a full disk the file names no process, but still is a lock
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, _described(), 0)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)


def _kernel(path: Path) -> _Kernel | None:
    """Locks a file; None if the file system has no locks. UserError if another process has the lock."""
    for left in reversed(range(TRIES)):
        try:
            return _Kernel(path)
        except BlockingIOError:
            if not left:
                raise _taken(path) from None
        except OSError:  # ENOLCK, ENOSYS, EOPNOTSUPP, ...: Lustre without its option, FUSE
            return None
        time.sleep(PAUSE_SECONDS)
    return None


class _Beats:
    """A lock by a file that its process renews; UserError if another process renews it already."""

    def __init__(self, path: Path):
        self._path, self._token, self._done = path, secrets.token_hex(8), threading.Event()
        before, deadline = storage.read(path), time.monotonic() + WATCH_SECONDS
        while before and time.monotonic() < deadline:  # an empty file is from this process's failed kernel lock
            time.sleep(BEAT_SECONDS / 2)
            if (storage.read(path) or before) != before:
                raise _taken(path)
        self._write(0)
        time.sleep(SETTLE_SECONDS)  # if two processes start at one moment, the last writer wins
        if not self._own():
            raise _taken(path)
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()

    def _write(self, beat: int) -> None:
        storage.write(self._path, _described(token=self._token, beat=beat))

    def _own(self) -> bool:
        return self._token.encode() in (storage.read(self._path) or self._token.encode())

    def _renew(self) -> None:
        beat = 0
        while not self._done.wait(BEAT_SECONDS):
            beat += 1
            with contextlib.suppress(Exception):  # a short network failure; gcsfs has no base class for its errors
                self._renew_once(beat)

    def _renew_once(self, beat: int) -> None:
        if self._own():
            self._write(beat)
        else:
            _give_way(self._path)

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        with contextlib.suppress(Exception):
            if self._own():
                self._path.unlink(missing_ok=True)


def _give_way(path: Path) -> None:
    why = f"{_taken(path).cause}, because this process was silent for more than {WATCH_SECONDS:g} s"
    exits.print_on_every_process(f"{why}. {exits.exit_sentence(TRY_AGAIN)}")
    if coordination.is_multi_process():
        exits.fail_all_processes(TRY_AGAIN, why=why)
    exits.exit_now(TRY_AGAIN)


def _described(**more) -> bytes:
    return storage.to_json({"host": socket.gethostname(), "process": os.getpid()} | more).encode()


def _taken(path: Path) -> UserError:
    """The error that names the holder of the folder, from the lock file."""
    holder = "another process"
    with contextlib.suppress(ValueError, LookupError, TypeError):
        content = json.loads(storage.read(path) or b"")
        holder = f"process {int(content['process'])} on {str(content['host'])[:100]}"
    return UserError(
        f"{path.parent} is in use: {holder} writes to it",
        "Wait until that process ends, stop it, or give another folder.",
    )
