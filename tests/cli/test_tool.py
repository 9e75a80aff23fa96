"""Commands without a config: what Ctrl-C does."""

import subprocess
import sys

import pytest

from bt_jax import __main__ as command
from bt_jax import cli, convert, prepare
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


def test_ctrl_c_while_a_command_is_imported(monkeypatch, capsys):
    monkeypatch.setattr(command.runpy, "run_module", interrupt)
    monkeypatch.setattr(sys, "argv", ["bt-jax"])
    assert command.main(["prepare"]) == 130
    assert capsys.readouterr().err == "bt-jax prepare: stopped.\n"
    for error, said in ((KeyboardInterrupt(), "bt_jax: stopped.\n"), (ValueError("x"), "other\n")):
        cli._one_line_for_ctrl_c(type(error), error, None, otherwise=lambda *_: print("other", file=sys.stderr))
        assert capsys.readouterr().err == said


def test_a_program_that_imports_bt_jax_keeps_its_hook():
    script = "import sys; before = sys.excepthook; import bt_jax.cli; print(sys.excepthook is before)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
