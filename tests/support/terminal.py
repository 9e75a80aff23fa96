"""A pseudo-terminal in place of stdout and stderr."""

import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios
import threading
import tty
from collections.abc import Iterator


class Terminal:
    """What programs have written to the terminal.

    Attributes:
      text: all of it.
    """

    def __init__(self) -> None:
        self.text = ""

    def rows(self) -> list[str]:
        """The rows as a person sees them at the end: a carriage return writes over the row."""
        rows = [""]
        at = 0
        for character in self.text:
            if character == "\n":
                rows, at = [*rows, ""], 0
            elif character == "\r":
                at = 0
            else:
                rows[-1] = rows[-1][:at] + character + rows[-1][at + 1 :]
                at += 1
        return [row.rstrip() for row in rows]


@contextlib.contextmanager
def terminal(monkeypatch, columns: int = 100) -> Iterator[Terminal]:
    """Makes stdout and stderr a terminal; its text is complete after the block."""
    seen, (ours, theirs) = Terminal(), pty.openpty()
    tty.setraw(theirs)  # no "\r" before "\n"
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read():
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(ours, 4096):
                seen.text += data.decode()

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w", buffering=1) as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        yield seen
    reader.join()
    os.close(ours)
