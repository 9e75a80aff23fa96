"""The command line: help that names every key, one line for every mistake, and the statuses that launchers know."""

import errno
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bt_jax import cli, evaluate, main
from bt_jax import config as config_lib
from bt_jax.errors import TRY_AGAIN, UserError

ROOT = Path(main.__file__).parents[1]


def test_help_names_every_key(monkeypatch):
    """Of every task, with its default; what the help shows is the main module's text."""
    module = sys.modules["__main__"]
    monkeypatch.setattr(module, "__doc__", "", raising=False)
    monkeypatch.setattr(cli.app, "run", lambda *_, **__: None)
    cli.run(main.main, "The program.", ["main", "--help"])
    said = module.__doc__
    assert said.startswith("The program.\n")
    for task in ("pretrain", "evaluate", "finetune"):
        for key in config_lib.flatten(getattr(config_lib, task)().to_dict()):
            shown = re.sub(r"(view[12])\..*", r"\1.FIELD", key)
            assert f"  --config.{shown}=" in said, key
    assert re.search(r"--config\.optim\.lr_weights=0\.2 +per 256 images", said)
    places = [said.index(f"task {task}:") for task in ("pretrain", "evaluate", "finetune")]
    assert places == sorted(places) and said.index("--config.evals.linear_epochs=") > places[1]


def test_a_user_error_has_its_status_and_one_line(monkeypatch, capsys):
    for status in (2, TRY_AGAIN):

        def fail(*_, status=status, **__):
            raise UserError("There is no file a\nb\t c", "Name another.", status=status)

        monkeypatch.setattr(cli.app, "run", fail)
        with pytest.raises(SystemExit) as ended:
            cli.run(main.main, "The program.", ["main"])
        assert ended.value.code == status
        assert capsys.readouterr().err == "bt_jax: There is no file a b c. Name another.\n"


def test_a_full_disk_is_one_line_and_other_errors_are_not(monkeypatch):
    """A bug must show its stack."""
    config = config_lib.evaluate()
    monkeypatch.setattr(main, "WORKDIR", SimpleNamespace(value="/w"))
    for number, expected in ((errno.ENOSPC, UserError), (errno.EDQUOT, UserError), (errno.EACCES, PermissionError)):

        def fail(*_, number=number, **__):
            raise OSError(number, "x")

        monkeypatch.setattr(evaluate, "run", fail)
        with pytest.raises(expected) as caught:
            main._run(config)
        assert expected is not UserError or "The disk is full while writing to /w" in str(caught.value)


def test_exit_statuses_of_launchers():
    """The scripts start a run again by its status, which they write as a number."""
    assert TRY_AGAIN == 75
    for script in ("local.sh", "tpu_vm.sh"):
        assert re.search(rf"\b{TRY_AGAIN} \|.*\) ;;", (ROOT / "launch" / script).read_text())
