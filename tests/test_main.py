"""The command line: help with every key, one line for every mistake, and the exit statuses for launchers."""

import errno
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from bt_jax import main
from bt_jax.cli import config_program
from bt_jax.config import arguments, keys
from bt_jax.messages import TRY_AGAIN, UserError
from bt_jax.processes import join, watchdog
from bt_jax.tasks import evaluate

ROOT = Path(main.__file__).parents[1]


@pytest.mark.parametrize("option", ["--help", "-h", "--helpfull"])
def test_help_names_every_key(capsys, option):
    """The keys of every task, with their defaults, after the text of the program and its options."""
    with pytest.raises(SystemExit) as ended:
        config_program.run(main.main, "The program.", ["main", option])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "  --workdir=WORKDIR " in said
    assert said.startswith("The program.\n")
    for task in ("pretrain", "evaluate", "finetune"):
        for key in arguments.flatten(getattr(keys, task)().to_dict()):
            shown = re.sub(r"(view[12])\..*", r"\1.FIELD", key)
            assert f"  --config.{shown}=" in said, key
    assert re.search(r"--config\.optim\.lr_weights=0\.2 +per 256 images", said)
    places = [said.index(f"task {task}:") for task in ("pretrain", "evaluate", "finetune")]
    assert places == sorted(places) and said.index("--config.evals.linear_epochs=") > places[1]


def test_a_user_error_has_its_status_and_one_line(monkeypatch, capsys):
    for status in (2, TRY_AGAIN):

        def fail(*_, status=status, **__):
            raise UserError("There is no file a\nb\t c", "Name another.", status=status)

        monkeypatch.setattr(config_program.app, "run", fail)
        with pytest.raises(SystemExit) as ended:
            config_program.run(main.main, "The program.", ["main"])
        assert ended.value.code == status
        assert capsys.readouterr().err == "bt_jax: There is no file a b c. Name another.\n"


def test_a_full_disk_is_one_line_and_other_errors_are_not(monkeypatch):
    """A bug must show its stack."""
    config = keys.evaluate()
    monkeypatch.setattr(main, "WORKDIR", SimpleNamespace(value="/w"))
    for number, expected in ((errno.ENOSPC, UserError), (errno.EDQUOT, UserError), (errno.EACCES, PermissionError)):

        def fail(*_, number=number, **__):
            raise OSError(number, "x")

        monkeypatch.setattr(evaluate, "run", fail)
        with pytest.raises(expected) as caught:
            main._run(config, 0.0)
        assert expected is not UserError or "The disk is full while writing to /w" in str(caught.value)


def test_a_line_comes_before_the_slow_imports(monkeypatch, capsys):
    config, said = keys.evaluate(), []
    config.self_check = False

    def load(name):
        said.append((name, capsys.readouterr().out))
        return SimpleNamespace(run=lambda *_, **__: None)

    monkeypatch.setattr(main, "WORKDIR", SimpleNamespace(value="/w"))
    monkeypatch.setattr(main, "importlib", SimpleNamespace(import_module=load))
    main._run(config, 0.0)
    assert said == [("bt_jax.tasks.evaluate", "starting evaluate\n")]


def test_exit_statuses_of_launchers():
    """The scripts restart a run by its status, which they contain as a number."""
    assert TRY_AGAIN == 75
    for script in ("local.sh", "tpu_vm.sh"):
        assert re.search(rf"\b{TRY_AGAIN} \|.*\) ;;", (ROOT / "launch" / script).read_text())


def test_a_key_of_the_program_has_its_effect(monkeypatch):
    values = {"watch.stuck_seconds": 11.0, "watch.silent_seconds": 12.0, "compile_cache": "/c", "self_check": False}
    # The self-check would set more of JAX on a machine without a cached result.
    config = keys.evaluate()
    config.update_from_flattened_dict(values)
    done = []
    monkeypatch.setattr(config_program, "CONFIG", SimpleNamespace(value=config))
    for flag, value in {"WORKDIR": "/w", "COORDINATOR": "host:1", "PROCESSES": 4, "PROCESS": 3}.items():
        monkeypatch.setattr(main, flag, SimpleNamespace(value=value))
    for where, name in (
        (join, "start"),
        (watchdog, "begin"),
        (watchdog, "end"),
        (evaluate, "run"),
        (jax.config, "update"),
    ):
        monkeypatch.setattr(where, name, lambda *them, name=name, **named: done.append((name, *them, named)))
    main.main(["main"])
    cache, _, start, begin, run, end = done
    assert cache[:3] == ("update", "jax_compilation_cache_dir", "/c")
    assert start == ("start", "host:1", 4, 3, {"silent_seconds": 12.0})
    assert begin == ("begin", {"stuck_seconds": 11.0, "silent_seconds": 12.0})
    assert run[:3] == ("run", config, "/w") and end == ("end", {})

    def fail(*_, **__):
        raise KeyError("a bug")

    monkeypatch.setattr(evaluate, "run", fail)
    with pytest.raises(KeyError):
        main.main(["main"])
    assert done[-1] == ("end", {})  # also if the task fails
    done.clear()
    config.watch.stuck_seconds = -1.0
    with pytest.raises(UserError, match="config.watch.stuck_seconds=-1.0 must not be negative"):
        main.main(["main"])
    assert done == []
