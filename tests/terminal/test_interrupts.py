"""Ctrl-C in a command: one line and status 130, at every moment from the import on."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from bt_jax.terminal import interrupts
from tests.support.paths import ROOT

LINE = "bt_jax: ended by Ctrl-C\n"
# A module that a command imports first: it interrupts the command, swallows what Python would raise, and never returns.
MODULE = """
import os, signal, time
while True:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except BaseException:
        pass
"""


def command(tmp_path, *words: str, module: str = "jax") -> subprocess.CompletedProcess:
    (tmp_path / f"{module}.py").write_text(MODULE)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, timeout=30)


@pytest.mark.parametrize(
    "words, module",
    [
        (("-m", "bt_jax", "pretrain"), "absl"),
        (("-m", "bt_jax.main"), "absl"),
        (("-m", "bt_jax", "report", "RUN"), "jax"),
        (("bt-jax", "evaluate"), "absl"),
    ],
)
def test_ctrl_c_within_an_import(tmp_path, words, module):
    """Of every form of a command; a handler of Python would run only when the import is over."""
    if words[0] == "bt-jax":
        script = tmp_path / "bt-jax"
        script.write_text("import sys\nfrom bt_jax.__main__ import main\nsys.exit(main())\n")
        words = (str(script), *words[1:])
    done = command(tmp_path, *words, module=module)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", LINE)


def test_a_program_that_imports_bt_jax_keeps_its_handler(tmp_path):
    check = "import signal, bt_jax; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    assert command(tmp_path, "-c", check).returncode == 0


@pytest.fixture
def wire(monkeypatch):
    """Writes the number of a signal to the thread, as the interpreter does; returns what the thread has ended with."""
    ended = []
    monkeypatch.setattr(interrupts, "_end", lambda: ended.append(130))
    monkeypatch.setattr(interrupts, "_installed", True)

    def send(*numbers: int) -> list[int]:
        received, sent = os.pipe()
        os.write(sent, bytes(numbers))
        os.close(sent)
        thread = threading.Thread(target=interrupts._read, args=(received,))
        thread.start()
        thread.join()
        os.close(received)
        return ended

    yield send
    interrupts.end_at_next()


def test_while_steps_are_taken_the_first_one_saves(wire):
    assert interrupts.ends_at_once() and wire(signal.SIGTERM) == []
    interrupts.leave_next_to_handler()
    assert not interrupts.ends_at_once() and wire(signal.SIGINT) == []
    assert wire(signal.SIGINT) == [130]


def test_after_training_it_ends_at_once(wire):
    interrupts.leave_next_to_handler()
    interrupts.end_at_next()
    assert interrupts.ends_at_once() and wire(signal.SIGINT) == [130]
