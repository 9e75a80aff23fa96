"""Messages for the user: lines on the terminal, and UserError, the exception for everything that a user can fix."""

import contextlib
import errno
import functools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Self, TextIO, TypeVar

from bt_jax.terminal import live_line

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 14  # on the same work; a heartbeat looks once a second, so 15 s may pass
TRY_AGAIN = 75  # exit status EX_TEMPFAIL (sysexits.h): the command is correct, run it again


class UserError(Exception):
    """One line with the cause and the fix, which every command prints without a traceback.

    Args:
      cause: the mistake, with the offending value; no full stop at its end.
      fix: a sentence with the remedy, which starts with a verb.
      status: exit status of the tasks that have a config; 2 makes a launcher give up, another one makes it restart.
        The other commands (cli/tool.py) exit with 2.
    """

    def __init__(self, cause: str, fix: str, *, status: int = 2):
        # Values from the user may contain line breaks.
        super().__init__(" ".join((f"{cause}. {fix}" if fix else cause).split()))
        self.cause = cause
        self.fix = fix
        self.status = status


def line(error: BaseException, limit: int = 300) -> str:
    """The text of an error as one line without colours, of at most `limit` characters."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    return " ".join(text.split())[:limit] or type(error).__name__


def counted(number: float, noun: str, form: str = "") -> str:
    """A number with its noun: "1 epoch", "2 epochs", "0.5 epochs".

    Args:
      form: the format of a whole number, such as "," for "1,200 steps".
    """
    digits = f"{number:g}" if isinstance(number, float) else f"{number:{form}}"
    return f"{digits} {noun}{'' if number == 1 else 's'}"


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or an error that caused it, means that the disk is full."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "no space left" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def say(text: str) -> None:
    """Prints one line as `show` does, from the first process only."""
    import jax  # imported here, so that a program that only reports an error does not wait for JAX

    if jax.process_index() == 0:
        show(text)


def show(text: str) -> None:
    """Prints one line: a warning, which begins with "WARNING: ", on stderr, any other on stdout."""
    put(text, sys.stderr if text.startswith("WARNING: ") else sys.stdout)


class Ongoing:
    """Says how far some work is: on a terminal by a live line, elsewhere every SECONDS_BETWEEN_LINES seconds.

    Work may be a part of other work. The two then share the time of the last line, so that their updates together
    print one line every SECONDS_BETWEEN_LINES seconds.

    Args:
      total: the amount of the work; 0: unknown.
    """

    _newest: "Ongoing | None" = None  # the newest of those that are entered

    def __init__(self, total: int = 0) -> None:
        self._line, whole = live_line.LiveLine(total), Ongoing._newest
        self._last = whole._last if whole else [time.monotonic()]  # the time of the last line, shared with the whole

    def __enter__(self) -> Self:
        self._before, Ongoing._newest = Ongoing._newest, self
        self._line.__enter__()
        return self

    def __exit__(self, *_) -> None:
        Ongoing._newest = self._before
        self._line.__exit__()

    def update(self, done: int, text: Callable[[], str]) -> None:
        """Notes that `done` of the work is done; text() returns the words, and is called only if they are shown."""
        if self._line.shown:
            self._line.update(done, text)
        elif time.monotonic() - self._last[0] > SECONDS_BETWEEN_LINES:
            self.say(text())

    def say(self, text: str) -> None:
        """Prints a line that stays, and delays the next line of `update`."""
        say(text)
        self._last[0] = time.monotonic()


class Heartbeat:
    """Says that one call, such as a compilation, still lasts: a thread calls `Ongoing.update` until `stop`.

    A context manager around the call starts and stops the thread. Each call needs an instance of its own.

    Args:
      text: text(seconds since `start`) -> the line.
      done: the amount of the work that was done before the call.
    """

    def __init__(self, ongoing: Ongoing, text: Callable[[int], str], done: int = 0) -> None:
        self._ongoing, self._text, self._done = ongoing, text, done
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Draws the live line at once, if there is one, and starts the thread."""
        self._ongoing.update(self._done, lambda: self._text(0))
        self._thread.start()

    def stop(self) -> None:
        """Ends it, if it was started; no line comes afterwards."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(1):
            self._ongoing.update(self._done, lambda: self._text(round(time.monotonic() - began)))


@contextlib.contextmanager
def during(work: str) -> Iterator[None]:
    """Says what the block does, and that it still does so until the block ends.

    Args:
      work: such as "writing the report".
    """
    with Ongoing() as ongoing:
        ongoing.say(work)
        with Heartbeat(ongoing, lambda seconds: f"still {work}, {seconds} s"):
            yield


def progress(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Yields the items and says their number as `Ongoing` does, such as "checking train: 20,000 of 50,000"."""
    with Ongoing(total) as ongoing:
        for count, item in enumerate(items, 1):
            ongoing.update(count, lambda count=count: f"{what}: {count:,} of {total:,}")
            yield item


@functools.cache
def say_once(text: str) -> None:
    """Prints a line as `say` does, but only once per process."""
    say(text)


def put(text: str, stream: TextIO | None) -> None:
    """Prints one line on a stream. A closed or full stream is ignored, because the caller's work is more important."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # closed, or a signal handler within another print
        live_line.make_way()
        print(text, file=stream, flush=True)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Makes stdout and stderr ignore write errors: a closed pipe or a full disk does not end the program.

    A closed descriptor 0, 1 or 2 is opened to /dev/null. Otherwise the next opened file would get that number, and with
    it all output of libraries.
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
        self._reported = self._gone = False

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if not self._gone:
            live_line.make_way(text)
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # characters that the terminal cannot show
                kind = self._stream.encoding
                self.write(text.encode(kind, "backslashreplace").decode(kind))
            except (OSError, ValueError) as error:
                self._failed(error)
            except RuntimeError:  # a signal handler prints within another print
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
        """Flushes, so that the interpreter's last flush cannot fail, which would change the exit status."""
        self.flush()
        if self._reported:
            self._leave()

    def _failed(self, error: Exception) -> None:
        """Reports the failure once, on stderr. A full disk may get space again; a closed pipe stays closed."""
        reported, self._reported = self._reported, True
        self._gone = not is_disk_full(error)
        if self._gone:
            self._leave()
        if not reported and self._name == "stdout":
            put(f"bt_jax: nothing can be written to stdout ({line(error)}); the program continues without", sys.stderr)

    def _leave(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor, as in tests
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)
            self._stream.flush()
