"""Config files of a user: they import the recipes from any working folder; a missing module is one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bt_jax.cli import config_program
from bt_jax.config import arguments, keys
from bt_jax.messages import UserError
from tests.support.paths import ROOT


@pytest.mark.parametrize("module", ["from bt_jax.configs import", "from configs import"])
def test_a_user_config_is_read_in_another_folder(tmp_path, module):
    """With the package alone on the path, as in an installation. Recipes had the second name in 0.1.0."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "bt_jax").symlink_to(ROOT / "bt_jax")
    recipe = (Path(ROOT) / "configs" / "pretrain_folder.py").read_text()
    (tmp_path / "mine.py").write_text(recipe.replace("from bt_jax.configs import", module))
    done = subprocess.run(
        [sys.executable, "-m", "bt_jax.main", "--config=mine.py:smoke,size=32"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("bt_jax: No --workdir is given."), done.stderr


@pytest.mark.parametrize(
    "message, fix",
    [
        ("No module named 'configs'", "Compare the name with"),
        ("cannot import name 'x' from 'configs' (/else/configs/__init__.py)", "of your own called configs"),
        ("No module named 'nowhere'", "Install it"),
    ],
)
def test_a_missing_import_of_a_config_file_gives_one_line(monkeypatch, message, fix):
    def fail(argv):
        raise ImportError(message)

    monkeypatch.setattr(config_program.flags, "FLAGS", fail)
    with pytest.raises(UserError, match="imports a missing module: .*") as caught:
        config_program._parse(["main"])
    assert message in str(caught.value) and fix in str(caught.value)


@pytest.mark.parametrize(
    "option, said",
    [
        ("--config.batch_size=abc", "--config.batch_size=abc is not an integer. Write --config.batch_size=128"),
        ("--config.total_epochs=1,5", "--config.total_epochs=1,5 is not a number. Write --config.total_epochs=0.5"),
        ("--config.data.on_device=abc", "is not a switch. Write --config.data.on_device=True or False"),
        ("--process=abc", "--process=abc is not an integer"),
    ],
)
def test_a_value_of_another_type_is_one_line(option, said):
    program = [sys.executable, "-m", "bt_jax", "pretrain", "--config=quickstart:smoke", option]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("bt_jax: ") and done.stderr.count("\n") == 1
    assert said in done.stderr, done.stderr


def test_the_help_starts_with_config_and_has_every_key():
    """Wrapped to the terminal."""
    environment = os.environ | {"COLUMNS": "100", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "bt_jax.main", "--help"]
    text = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout
    options = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert options[0] == "--config=RECIPE[:ARGUMENTS]"
    tasks = (keys.pretrain, keys.evaluate, keys.finetune)
    known = {key for task in tasks for key in arguments.flatten(arguments.to_dict(task()))}
    fields = {key for key in known if key.startswith(("views.view1.", "views.view2."))}
    assert known - fields == {option.removeprefix("--config.").partition("=")[0] for option in options} & known
    assert all(text.count(key.rpartition(".")[2]) >= 2 for key in fields)
    described = text[text.index("  --config=") :]
    assert max(map(len, described.splitlines())) <= 100


@pytest.mark.parametrize("name, other", [("evaluate", "finetune"), ("finetune", "evaluate"), ("plan", "finetune")])
def test_the_help_of_a_command_has_its_keys_alone(name, other):
    command = [sys.executable, "-m", "bt_jax", name, "--help"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    text = done.stdout
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert f"bt-jax {name} --config" in text[: text.index("  --config=")] and "bt_jax.main" not in text
    assert ("--workdir=" in text, "--topology=" in text) == (name != "plan", name == "plan")
    keys_of = {task: f"task {task}:" in text for task in keys.TASKS}
    assert sum(keys_of.values()) == 1 and not keys_of[other] and text.count("--config.encoder=") < 3
