"""What a person reads: lines on the terminal, and the one exception for everything that a user can fix."""

import contextlib
import errno
import functools
import os
import re
import sys
from collections.abc import Iterator
from typing import TextIO

TRY_AGAIN = 75  # exit status EX_TEMPFAIL (sysexits.h): nothing is wrong with the command, give it once more


class UserError(Exception):
    """One line with the cause and the cure. `main` prints it without a traceback and exits with `status`.

    Args:
      cause: what is wrong, naming the value that was given.
      cure: what to do about it, starting with a verb.
      status: 2, or another where a launcher is to do something else than to give up.
    """

    def __init__(self, cause: str, cure: str, *, status: int = 2):
        # Names that a person gave may hold line breaks.
        super().__init__(" ".join((f"{cause}. {cure}" if cure else cause).split()))
        self.cause = cause
        self.cure = cure
        self.status = status


def line(error: BaseException, limit: int = 300) -> str:
    """What an error of another program says: one line, without colours, of `limit` letters at most."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    return " ".join(text.split())[:limit] or type(error).__name__


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or one that caused it, says that there is no space left."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "no space left" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def say(text: str) -> None:
    """One line on the terminal, from the first process only."""
    import jax  # here, so that a program that only reports an error does not wait for JAX to load

    if jax.process_index() == 0:
        put(text, sys.stdout)


@functools.cache
def say_once(text: str) -> None:
    """`say`, unless this process has said it before."""
    say(text)


def put(text: str, stream: TextIO | None) -> None:
    """One line on a stream, unless nobody reads it: a caller has more to do than to print."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # closed, or in the middle of a line, by a signal
        print(text, file=stream, flush=True)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Inside, writing to stdout and stderr raises nothing where the reader is gone or the disk behind them is full.

    A descriptor 0, 1 or 2 that was closed is opened to nothing: the next file would get its number, and in it whatever
    libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nothing:
        sys.stdout, sys.stderr = _Lasting("stdout", before[0] or nothing), _Lasting("stderr", before[1] or nothing)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, _Lasting):
                    stream.end()
            sys.stdout, sys.stderr = before


class _Lasting:
    """A text stream whose `write` and `flush` do not fail."""

    def __init__(self, name: str, stream: TextIO):
        self._name, self._stream = name, stream
        self._told = self._gone = False

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if not self._gone:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # a name that the terminal has no letters for
                kind = self._stream.encoding
                self.write(text.encode(kind, "backslashreplace").decode(kind))
            except (OSError, ValueError) as error:
                self._failed(error)
            except RuntimeError:  # a signal's line in the middle of another line
                with contextlib.suppress(OSError, ValueError):
                    os.write(self._stream.fileno(), text.encode(errors="backslashreplace"))
        return len(text)

    def flush(self) -> None:
        if not self._gone:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._failed(error)
            except RuntimeError:
                pass

    def end(self) -> None:
        """Drops what cannot be written: the interpreter's own last flush would fail, and change the exit status."""
        self.flush()
        if self._told:
            self._leave()

    def _failed(self, error: Exception) -> None:
        """Says so once, on the other stream. A full disk may have room again; a reader does not come back."""
        told, self._told = self._told, True
        self._gone = not is_disk_full(error)
        if self._gone:
            self._leave()
        if not told and self._name == "stdout":
            put(f"bt_jax: nothing can be written to stdout ({line(error)}); the program continues without", sys.stderr)

    def _leave(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor, as those of tests
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)
            self._stream.flush()
