"""Makes Ctrl-C end a command of bt_jax at any moment, even during an import, with one line and exit status 130.

Python itself would raise KeyboardInterrupt in the main thread. That exception prints a traceback, a library may swallow
it, and it waits for the end of a compilation or of another call outside Python. Therefore a thread reads the signals
here. It removes unfinished files (`tidied`). While training takes steps, `processes.stop_signals` handles the first
Ctrl-C and saves.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

STATUS = 128 + signal.SIGINT
_installed = _left = False
_passes = 0  # number of signals that are left to their handler
_line = "bt_jax: ended by Ctrl-C"
_unfinished: list[Callable[[], object]] = []  # what `tidied` calls
_tidying = threading.RLock()


def install() -> None:
    """Starts the thread if this process runs a command. `import bt_jax` calls it.

    Another program that imports bt_jax keeps its own handler. A background job of a shell still ignores Ctrl-C.
    """
    if not is_command() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    if threading.current_thread() is not threading.main_thread():
        return
    global _installed
    _installed = True
    received, sent = os.pipe()
    os.set_blocking(sent, False)
    signal.set_wakeup_fd(sent, warn_on_full_buffer=False)  # the interpreter writes the number of each signal there
    signal.signal(signal.SIGINT, lambda number, frame: None)
    threading.Thread(target=_read, args=(received,), name="interrupts", daemon=True).start()


def leave_next_to_handler() -> None:
    """Leaves the next Ctrl-C to the Python handler of the signal. The one after that ends the program."""
    global _left, _passes
    _left, _passes = True, 1


def end_at_next() -> None:
    """Makes the next Ctrl-C end the program again."""
    global _left, _passes
    _left, _passes = False, 0


def end_with(line: str) -> None:
    """Sets the line that is printed at the end."""
    global _line
    _line = line


@contextlib.contextmanager
def tidied(tidy: Callable[[], object]) -> Iterator[None]:
    """Calls `tidy` after the block, whether it succeeds, fails or is ended by Ctrl-C.

    Args:
      tidy: removes the unfinished files of the block, if there are any. At Ctrl-C, the block still runs in its thread.
    """
    with _tidying:
        _unfinished.append(tidy)
    try:
        yield
    finally:
        with _tidying:  # at Ctrl-C it is never free again, so that no error about a removed file is printed
            _unfinished.remove(tidy)
            tidy()


def ends_at_once() -> bool:
    """Whether the thread ends this process at Ctrl-C. If not, the Python handler of the signal decides."""
    return _installed and not _left


def is_command() -> bool:
    """Whether `bt-jax …` or `python -m bt_jax…` runs. With -m, sys.argv[0] is "-m" while Python imports the package."""
    program = sys.argv[0] if sys.argv else ""
    of_package = any(word.partition(".")[0] == "bt_jax" for word in sys.orig_argv)
    return program == "-m" and of_package or os.path.basename(program) == "bt-jax"


def _read(received: int) -> None:
    global _passes
    while signals := os.read(received, 1):
        if signals[0] != signal.SIGINT:
            continue
        if _passes:
            _passes -= 1
        else:
            _end()


def _end() -> None:
    _tidying.acquire()
    for tidy in reversed(_unfinished):
        with contextlib.suppress(Exception):  # such as a file system that has become read-only
            tidy()
    coordination = sys.modules.get("bt_jax.processes.coordination")
    exits = sys.modules.get("bt_jax.processes.exits")  # imported by the commands that several processes can run
    with contextlib.suppress(Exception):  # the import of one of them is not finished
        if coordination.is_multi_process():
            exits.print_on_every_process("ended by Ctrl-C")
            exits.fail_all_processes(STATUS, why="Ctrl-C")
    with contextlib.suppress(Exception):  # a stream that is closed, or in use by the main thread
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        print(_line, file=sys.stderr, flush=True)
    os._exit(STATUS)
