"""Makes Ctrl-C end a command of bt_jax at any moment, even during an import, with one line and exit status 130.

Python itself would raise KeyboardInterrupt in the main thread. That exception prints a traceback, a library may swallow
it, and it waits for the end of a compilation or of another call outside Python. Therefore a thread reads the signals
here. While training takes steps, `processes.stop_signals` handles the first Ctrl-C and saves.
"""

import contextlib
import os
import signal
import sys
import threading

STATUS = 128 + signal.SIGINT
_installed = _left = False
_passes = 0  # number of signals that are left to their handler


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


def raise_as_python_does() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt in the main thread again."""
    global _installed
    if _installed:
        _installed = False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
    coordination = sys.modules.get("bt_jax.processes.coordination")
    exits = sys.modules.get("bt_jax.processes.exits")  # imported by the commands that several processes can run
    with contextlib.suppress(Exception):  # the import of one of them is not finished
        if coordination.is_multi_process():
            exits.print_on_every_process("ended by Ctrl-C")
            exits.fail_all_processes(STATUS, why="Ctrl-C")
    with contextlib.suppress(Exception):  # a stream that is closed, or in use by the main thread
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        print("bt_jax: ended by Ctrl-C", file=sys.stderr, flush=True)
    os._exit(STATUS)
