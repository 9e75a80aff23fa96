"""The command bt-jax: its subcommands, recipes by name from any folder, and flags in any order."""

import sys

import pytest

import bt_jax
from bt_jax import __main__ as command
from bt_jax import main as program
from bt_jax.cli import config_program
from bt_jax.messages import UserError


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working folder without a checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_is_in_the_help(capsys):
    assert command.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"bt-jax {name}" in text for name in command.TASKS + command.TOOLS)
    assert command.main([]) == 2


@pytest.mark.parametrize(
    "word, said",
    [
        ("trian", "Unknown command 'trian'. Did you mean pretrain? bt-jax --help lists all commands."),
        ("zzz", "Unknown command 'zzz'. bt-jax --help lists all commands."),
        ("quickstart:smoke", "a recipe: write bt-jax pretrain --config=quickstart:smoke --workdir=RUN."),
        ("linear", "a recipe: write bt-jax finetune --config=linear --config.encoder=RUN --workdir=OUT."),
    ],
)
def test_an_unknown_command(capsys, word, said):
    assert command.main([word]) == 2
    assert said in capsys.readouterr().err


def test_the_version(capsys):
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"bt_jax {bt_jax.__version__}\n"


def test_a_tool_gets_its_options(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bt-jax"])
    with pytest.raises(SystemExit) as ended:
        command.main(["report", "nowhere"])
    assert ended.value.code == 2 and "nowhere" in capsys.readouterr().err


def test_a_task_gets_its_recipe(monkeypatch):
    """Evaluation and fine-tuning have a default recipe. A recipe of another task is an error."""
    calls = []
    monkeypatch.setattr(
        config_program, "run", lambda main, doc, argv, **named: calls.append((main, argv[1:], named, doc))
    )
    monkeypatch.setattr(sys, "argv", ["bt-jax"])
    for name in command.TASKS:
        command.main([name, "--workdir=r"])
    assert [named["default"] for _, _, named, _ in calls] == ["", "evaluate", "finetune"]
    assert {tuple(rest) for _, rest, _, _ in calls} == {("--workdir=r",)}
    assert [main.keywords for main, _, _, _ in calls] == [{"task": name} for name in command.TASKS]
    assert [named["tasks"] for _, _, named, _ in calls] == [[name] for name in command.TASKS]
    assert all(doc.startswith(f"bt-jax {name} ") for name, (*_, doc) in zip(command.TASKS, calls, strict=True))


def test_a_recipe_of_another_task(monkeypatch):
    monkeypatch.setattr(program, "WORKDIR", type("Flag", (), {"value": "r"}))
    config = type("Config", (), {"task": "finetune"})
    monkeypatch.setattr(config_program, "CONFIG", type("Flag", (), {"value": config}))
    with pytest.raises(UserError, match="for the task finetune, not pretrain. Run bt-jax finetune."):
        program.main(["main"], task="pretrain")


def test_recipes_are_found_by_name(elsewhere):
    (elsewhere / "mine.py").touch()
    assert config_program.find_recipe("mine.py:smoke") == "mine.py:smoke"
    package = str(config_program.RECIPES / "quickstart.py")
    for name in ("quickstart", "quickstart.py", "configs/quickstart.py"):
        assert config_program.find_recipe(f"{name}:smoke") == f"{package}:smoke"
        assert config_program.find_recipe(name) == package
    with pytest.raises(UserError, match="There is no config file quickstrat. Name a file, or a recipe: quickstart, "):
        config_program.find_recipe("quickstrat")
    (elsewhere / "run").mkdir()
    (elsewhere / "run/config.json").write_text('{"smoke": false}')
    with pytest.raises(UserError, match="^run/config.json is a JSON file, not a recipe. To resume a run, give its"):
        config_program.find_recipe("run/config.json")
    with pytest.raises(UserError, match="^run is a run folder, not a recipe. .* to evaluate it, set --config.encoder"):
        config_program.find_recipe("run")
    with pytest.raises(UserError, match="^There is no config file none.json"):
        config_program.find_recipe("none.json")
    (elsewhere / "run").rename(elsewhere / "quickstart")  # the folder of `--config=quickstart --workdir=quickstart`
    assert config_program.find_recipe("quickstart") == package


@pytest.mark.parametrize("config", [["--config=quickstart"], ["--config", "quickstart"], ["-config=quickstart"]])
def test_flags_in_any_order(config):
    """ml_collections needs the file before the keys that override it."""
    rest = ["--workdir=OUT", "--config.seed=3"]
    first = f"--config={config_program.RECIPES / 'quickstart.py'}"
    assert config_program._recipe_first(["main", *rest, *config], "") == ["main", first, *rest]
    assert config_program._recipe_first(["main", *rest], "quickstart") == ["main", first, *rest]
    assert config_program._recipe_first(["main", *rest], "") == ["main", *rest]
