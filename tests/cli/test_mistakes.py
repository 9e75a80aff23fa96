"""Mistakes on the command line: each error has the words to write instead."""

import sys

import pytest
from absl.testing import flagsaver

from bt_jax import main
from bt_jax.cli import config_program, mistakes
from bt_jax.messages import UserError

assert main.WORKDIR.name  # importing main defines its options


@pytest.fixture
def said(monkeypatch):
    def parse(*words, default=""):
        argv = config_program._recipe_first(["main", *words], default)
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.delitem(sys.modules, "config_config", raising=False)  # where ml_collections loads the config file
        with flagsaver.flagsaver(), pytest.raises(UserError) as caught:
            config_program._parse(argv)
        return str(caught.value)

    return parse


@pytest.mark.parametrize(
    "key, tasks",
    [("data.labels", "pretrain"), ("optim.momentum", "pretrain or finetune"), ("data.fraction", "finetune")],
)
def test_a_key_of_another_task(said, key, tasks):
    recipe = "quickstart" if tasks == "finetune" else "evaluate"
    assert said(f"--config={recipe}:smoke", "--config.seed=1", f"--config.{key}=1") == (
        f"The config key {key} belongs to another task: {tasks}. Leave it out."
    )


@pytest.mark.parametrize(
    "arguments, body, wanted",
    [
        ("", "def get_config():\n    raise KeyError('seed')", "fails in line 2: KeyError: 'seed'. Correct the file."),
        ("", "def get_config():\n    return {}.seed", "fails in line 2: AttributeError: 'dict' object has no"),
        ("", "def get_config():\n    int('many')", "fails in line 2: ValueError: invalid literal for int()"),
        ("", "1 / 0", "fails in line 1: ZeroDivisionError: division by zero. Correct the file."),
        ("", "config = 3", "has no function get_config. Define get_config(arg=None) in it, as in docs/recipes.md."),
        (
            ":smoke",
            "def get_config():\n    pass",
            "was given. Define get_config(arg=None) in it, as in docs/recipes.md.",
        ),
    ],
)
def test_an_error_of_the_config_file_itself_has_its_line(said, tmp_path, arguments, body, wanted):
    (tmp_path / "mine.py").write_text(f"{body}\n")
    for override in ([], ["--config.seed=1"]):
        text = said(f"--config={tmp_path}/mine.py{arguments}", *override)
        assert text.startswith(f"The config file {tmp_path}/mine.py ") and wanted in text and "Traceback" not in text


def test_an_option_of_another_method(said):
    option = "--config.objective.lambd=0.1"
    assert said("--config=quickstart:smoke,method=simclr", option) == (
        "lambd is an option of barlow_twins; the method of this run is simclr, which has the options temperature,"
        " sum_of_views. Leave it out, or write --config=quickstart:smoke,method=barlow_twins for barlow_twins."
    )
    assert "is infonce, which has no options. " in said("--config=quickstart:method=infonce", option)
    text = said("--config=quickstart:smoke", "--config.objective.temperature=1")
    assert (
        text.startswith("temperature is an option of moco and simclr; ")
        and "is barlow_twins, which has the options lambd," in text
    )


def test_an_unknown_option_of_a_method(said):
    recipe = "--config=quickstart:smoke,method=simclr"
    assert said(recipe, "--config.objective.temprature=0.1") == (
        "Unknown config key 'objective.temprature'. Did you mean --config.objective.temperature? --help lists all keys."
    )
    assert said(recipe, "--config.objective.zzz=1").endswith("'objective.zzz'. See --help, which lists all keys.")
    assert said(recipe, "--config.qqqqq=1").endswith("'qqqqq'. See --help, which lists all keys.")


def test_the_name_of_a_method_alone(said, tmp_path):
    name = "--config.objective.name=simclr"
    assert said("--config=quickstart:smoke", name) == (
        "--config.objective.name=simclr changes the name of the method, but not its options."
        " Write --config=quickstart:smoke,method=simclr."
    )
    file = tmp_path / "mine.py"
    file.write_text("from bt_jax import config\n\ndef get_config():\n    return config.pretrain()\n")
    assert "Set the whole section in a config file" in said(f"--config={file}", name)


def test_an_unknown_method_of_a_recipe(said):
    assert "method='barlow' is unknown. Did you mean barlow_twins? Choose" in said("--config=quickstart:method=barlow")


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["--batch_size=32"], "Write --config.batch_size=32."),
        (["--optim.lr_weights=0.3"], "Write --config.optim.lr_weights=0.3."),
        (["--lr_weights", "0.3"], "Write --config.optim.lr_weights=VALUE."),
        (["--momentum=0.5"], "Write --config.optim.momentum=0.5 or --config.probe.momentum=0.5."),
        (["--wrkdir=y"], "Did you mean --workdir?"),
        (["--config.num_epochs=3"], "Did you mean --config.total_epochs?"),
        (["--config.lr=3"], "Did you mean --config.optim.lr_weights?"),
        (["--lr=3"], "Write --config.optim.lr_weights=3."),
        (["--zzzzz=y"], "Unknown option --zzzzz. --help"),
        (["batch_size=32"], "Write --config.batch_size=32."),
        (["config.seed=3"], "Write --config.seed=3."),
        (["workdir=y"], "Write --workdir=y."),
        (["runs/mine"], "Unknown argument 'runs/mine'. Write options as --name=value; see --help."),
    ],
)
def test_a_forgotten_beginning_of_an_option(said, words, wanted):
    assert wanted in said("--config=quickstart:smoke", *words)


@pytest.mark.parametrize("body, value", [("return 3", "int"), ("quickstart.get_config(arg)", "NoneType")])
def test_a_config_file_that_returns_no_config(said, tmp_path, body, value):
    (tmp_path / "mine.py").write_text(f"from configs import quickstart\ndef get_config(arg=None):\n    {body}\n")
    for override in ([], ["--config.seed=1"]):
        assert said(f"--config={tmp_path}/mine.py", *override) == (
            f"The function get_config of {tmp_path}/mine.py returns an object of the type {value}."
            " End it with `return config`."
        )


def test_without_a_recipe(said, tmp_path):
    assert said("--workdir=y") == "No --config is given. Name a recipe, such as --config=quickstart."
    assert said("--config.seed=1").startswith("No --config is given")
    assert "Write --config.batch_size=32." in said("--batch_size=32")
    assert said("quickstart:smoke", "--workdir=y") == (
        "Unknown argument 'quickstart:smoke'. Write --config=quickstart:smoke."
    )
    (tmp_path / "photo.png").touch()
    assert "Write options as --name=value" in said(str(tmp_path / "photo.png"))
    assert "Write --config.encoder=a." in said("--encoder=a", default="evaluate")


def test_the_task_of_a_recipe(tmp_path):
    """Another program of the user does not run."""
    other = tmp_path / "other.py"
    other.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert mistakes.task_of(f"{config_program.RECIPES / 'linear'}.py:smoke") == "finetune"
    assert mistakes.task_of(str(other)) == "" and not (tmp_path / "ran").exists()
    other.write_text("def get_config():\n    raise ValueError('failed')\n")
    assert mistakes.task_of(str(other)) == ""
