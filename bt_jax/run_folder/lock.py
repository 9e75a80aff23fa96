"""One start at a time writes to a folder; a second one fails with a line that names the host and process of the first.

On a disk of this machine, and on NFS, where Linux hands it on to the server: a lock of the kernel on FOLDER/.lock. It
ends with its process, however that ends. In a bucket, and on a file system that has no locks: the process that holds
the folder renews .lock every BEAT_SECONDS. Another start looks at it for WATCH_SECONDS, is refused if it changes, and
takes the folder if it does not. A process that finds its folder taken, as it was silent for longer, ends with status
75.

Of several processes of one run the first holds the folder.
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
TRIES, PAUSE_SECONDS = 5, 0.1  # a lock that lasts for a moment is that of another start's `look`
BEAT_SECONDS, WATCH_SECONDS, SETTLE_SECONDS = 5.0, 20.0, 1.0

_held: dict[str, "_Kernel | _Beats"] = {}  # by folder, of this process


def look(folder: Path) -> None:
    """Refuses a folder that another process holds, before anything is read or made; says nothing of a bucket's."""
    path = folder / NAME
    if coordination.process() or storage.in_bucket(folder) or os.fspath(folder) in _held or not path.is_file():
        return
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(path) from None


def hold(folder: Path) -> None:
    """Holds an existing folder until `release`, or until this process ends.

    Raises:
      UserError: another process holds it, or nobody may write there.
    """
    key = os.fspath(folder)
    if coordination.process() or key in _held:
        return
    path = folder / NAME
    _held[key] = (None if storage.in_bucket(folder) else _kernel(path)) or _Beats(path)


def release() -> None:
    """Gives back every folder that this process holds."""
    while _held:
        _held.popitem()[1].close()


def releasing(run: Callable) -> Callable:
    """Decorates a function that opens a folder and writes to it: at its end others may."""

    @functools.wraps(run)
    def wrapped(*arguments, **named):
        try:
            return run(*arguments, **named)
        finally:
            release()

    return wrapped


class _Kernel:
    """An exclusive lock of the kernel on a file, which is deleted at the end.

    Raises:
      BlockingIOError: another process has it.
      OSError: the file system has no locks.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            cure = "Give a folder that you may write to."
            raise UserError(f"Nothing can be written to {path.parent}: {error.strerror}", cure) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not (path.exists() and os.path.samestat(os.fstat(self._descriptor), path.stat())):
                raise BlockingIOError  # the process that held it has just deleted this file
        except BaseException:
            os.close(self._descriptor)
            raise
        with contextlib.suppress(OSError):  # on a full disk it names nobody, and is a lock
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, _described(), 0)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)


def _kernel(path: Path) -> _Kernel | None:
    """None where the file system has no locks; UserError where another process has this one."""
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
    """A file that is written again and again; UserError where another process does so already."""

    def __init__(self, path: Path):
        self._path, self._token, self._done = path, secrets.token_hex(8), threading.Event()
        before, deadline = storage.read(path), time.monotonic() + WATCH_SECONDS
        while before and time.monotonic() < deadline:  # an empty file is this process's own, of `_kernel`
            time.sleep(BEAT_SECONDS / 2)
            if (storage.read(path) or before) != before:
                raise _taken(path)
        self._write(0)
        time.sleep(SETTLE_SECONDS)  # of two starts at one moment the one that wrote last has it
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
            with contextlib.suppress(Exception):  # a network that fails for a moment; gcsfs has no class for its errors
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
    why = f"{_taken(path).cause}, as this process was silent for more than {WATCH_SECONDS:g} s"
    exits.say_everywhere(f"{why}. {exits.ends_with(TRY_AGAIN)}")
    if coordination.several():
        exits.leave(TRY_AGAIN, why=why)
    exits.end(TRY_AGAIN)


def _described(**more) -> bytes:
    return storage.to_json({"host": socket.gethostname(), "process": os.getpid()} | more).encode()


def _taken(path: Path) -> UserError:
    """Names who holds the folder, by what stands in its file."""
    who = "another process"
    with contextlib.suppress(ValueError, LookupError, TypeError):
        found = json.loads(storage.read(path) or b"")
        who = f"process {int(found['process'])} on {str(found['host'])[:100]}"
    return UserError(
        f"{path.parent} is in use: {who} writes to it",
        "Wait until that one ends, stop it, or give another folder.",
    )
