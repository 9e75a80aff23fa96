"""Commands without a config: what Ctrl-C does."""

import os
import subprocess
import sys

import pytest

from bt_jax import convert, prepare
from bt_jax.embed import __main__ as embed
from tests.support.paths import ROOT


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "module, run, arguments",
    [
        (prepare, "run", ["--data=patterns"]),
        (convert, "run", ["x", "--to=torch", "--out=y"]),
        (embed, "_run", ["--encoder=x", "--out=y"]),
    ],
)
def test_ctrl_c_is_one_line(monkeypatch, capsys, module, run, arguments):
    monkeypatch.setattr(module, run, interrupt)
    assert module.main(arguments) == 130
    name = module.__name__.split(".")[1]
    assert capsys.readouterr().err.startswith(f"{name}: stopped.")


# A command that is interrupted while it writes a file. Either a library swallows what Python would raise and never
# returns, or the write fails because the thread of `interrupts` has removed the file.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from bt_jax import prepare, storage

target, how = Path(sys.argv[1]), sys.argv[2]

def write(file):
    file.write(b"half")
    try:
        os.kill(os.getpid(), signal.SIGINT)
        while how == "swallows" or any(target.parent.iterdir()):
            pass
    except BaseException:
        while how == "swallows":
            time.sleep(60)
    raise OSError("the file is gone")

prepare.run = lambda options: storage.write(target, write)
sys.exit(prepare.main([]))
"""


@pytest.mark.parametrize("how", ["swallows", "fails"])
def test_ctrl_c_while_a_tool_writes(tmp_path, how):
    """One line and 130 whatever the libraries do, and no partial file."""
    script, folder = tmp_path / "bt-jax", tmp_path / "out"
    script.write_text(SCRIPT)
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, script, folder / "cache.npz", how],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "prepare: stopped.\n")
    assert not list(folder.iterdir())
