"""Commands without a config: what Ctrl-C does."""

import signal

import pytest

from bt_jax import convert, prepare
from bt_jax.embed import __main__ as embed
from bt_jax.terminal import interrupts


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


def test_ctrl_c_raises_in_a_command_that_tidies(monkeypatch):
    """The thread of `interrupts` ends a process at once; a tool removes its unfinished files first."""
    monkeypatch.setattr(interrupts, "_installed", True)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        monkeypatch.setattr(prepare, "run", lambda options: signal.raise_signal(signal.SIGINT))
        assert prepare.main(["--data=patterns"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
