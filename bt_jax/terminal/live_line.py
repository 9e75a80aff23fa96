"""A progress bar on the terminal: one line, redrawn below the lines that stay.

It exists only if stdout is a terminal, and only in the first process. `messages` clears it before anything is written
to stdout or stderr, and the next update draws it again, so that no other text shares its row.
"""

import functools
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

SECONDS_BETWEEN_DRAWINGS = 0.2  # at most five system calls a second, however short a step is

_lock = threading.RLock()  # a signal handler may print in the middle of a drawing, in the same thread
_line: "LiveLine | None" = None  # the newest open line
_within_line = False  # whether the last text written lacks a line break at its end


class LiveLine:
    """Shows how much of some work is done; a context manager. Without a terminal it does nothing.

    Args:
      total: the amount of the work; 0: unknown, so the line has no bar.
    """

    def __init__(self, total: int) -> None:
        self._bar, self._drawn_at, self._drawing = _bar(total) if _on_terminal() else None, -math.inf, 0

    def __enter__(self) -> Self:
        global _line
        with _lock:  # a thread may draw the outer line
            make_way()
            self._before, _line = _line, _line if self._bar is None else self
        return self

    def __exit__(self, *_) -> None:
        global _line
        if self._bar is not None:
            self.clear()
            self._bar.disable = True  # tqdm's own `close` would draw the bar once more
            _line, self._bar = self._before, None

    @property
    def shown(self) -> bool:
        """Whether the line is drawn, because stdout is a terminal."""
        return self._bar is not None

    def update(self, done: int, text: Callable[[], str]) -> None:
        """Draws the line, if the last drawing is SECONDS_BETWEEN_DRAWINGS old and no inner line is open.

        Args:
          done: amount of the work so far.
          text: text() -> the words after the bar; called only for a drawing.
        """
        bar = self._bar
        if bar is None:
            return
        now = time.monotonic()
        if now - self._drawn_at < SECONDS_BETWEEN_DRAWINGS or _within_line:
            return
        with _lock:
            if _line is not self:
                return
            self._drawn_at = now
            bar.n = done
            bar.set_description_str(text(), refresh=False)
            self._write(bar.display)

    def clear(self) -> None:
        """Removes the bar from the terminal until the next update."""
        with _lock:
            bar = self._bar
            if bar is not None and not self._drawing and self._drawn_at > -math.inf:
                self._write(lambda: bar.clear(nolock=True))
                self._drawn_at = -math.inf  # the next update brings it back at once

    def _write(self, draw: Callable[[], object]) -> None:
        self._drawing += 1
        try:
            draw()
        finally:
            self._drawing -= 1


def make_way(text: str = "") -> None:
    """Clears the line, if there is one, before `text` is written to stdout or stderr."""
    global _within_line
    if _line is None:
        return
    with _lock:
        if _line._drawing:  # the text is the line's own, or comes from a signal handler that interrupted a drawing
            return
        _line.clear()
        _within_line = bool(text) and not text.endswith("\n")


def _on_terminal() -> bool:
    import jax  # imported here, as in `messages`

    try:
        if jax.process_index() or not sys.stdout.isatty():
            return False
        return os.get_terminal_size(sys.stdout.fileno()).columns > 0  # 0: unknown, and tqdm would draw nothing
    except (OSError, ValueError):  # a closed stream, or one without a descriptor
        return False


def _bar(total: int):
    return _bar_class()(
        total=total or None,
        leave=False,
        dynamic_ncols=True,
        bar_format="{percentage:3.0f}% |{bar:20}| {desc}" if total else "{desc}",
        file=sys.stdout,
        position=0,  # also for a line inside another one: the outer line is not drawn meanwhile
        delay=1e9,  # tqdm itself draws nothing before the first update
    )


@functools.cache
def _bar_class():
    from tqdm import std

    class Bar(std.tqdm):
        """tqdm without its thread, and without its lock between processes."""

        monitor_interval = 0

    Bar.set_lock(_lock)
    return Bar
