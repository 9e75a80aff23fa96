"""Errors for mistakes on the command line of a program with a config. Each says how to correct the command."""

import difflib
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from bt_jax.cli import command_line
from bt_jax.config import arguments, keys
from bt_jax.messages import UserError

SEE_HELP = "See --help, which lists all keys."
# Names in other programs, and the keys that they are here
ELSEWHERE = {
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs", "max_epochs"), "total_epochs"),
    **dict.fromkeys(("lr", "learning_rate", "base_lr", "optim.lr"), "optim.lr_weights"),
    **dict.fromkeys(("wd", "weight_decay"), "optim.weight_decay"),
    **dict.fromkeys(("image_size", "size"), "views.size"),
}


def unknown_key(argv: Sequence[str], text: str) -> UserError:
    """The error for a key that the config does not have.

    Args:
      argv: the command line, with the recipe as --config=PATH.
      text: the text of ml_collections' error, which may contain the whole config.
    """
    if kind := re.search(r"Attribute <class '(\w+)'>\.\w+ does not exist", text):  # of ml_collections
        return not_a_config(argv, kind[1])
    config = _config(argv)
    named = [word.removeprefix("--config.").partition("=")[0] for word in argv if word.startswith("--config.")]
    unknown = [key for key in named if key not in _flat(config)]
    if config is None or not unknown:
        return UserError(" ".join(text.split())[:300], "See --help and the docstring of the config file.")
    key = unknown[0]
    if key in arguments.RENAMED_KEYS:
        new = arguments.RENAMED_KEYS[key]
        return UserError(f"The config key {key} has a new name, {new}", f"Write --config.{new}=VALUE.")
    if key.startswith("objective.") and "objective" in config:
        return _unknown_option(argv, config, key.removeprefix("objective."))
    having = [task for task, kind in keys.TASKS.items() if key in _flat(kind())]
    if having:
        return UserError(f"The config key {key} belongs to another task: {' or '.join(having)}", "Leave it out.")
    return UserError(f"Unknown config key {key!r}", _did_you_mean(key, _flat(config)))


def _unknown_option(argv: Sequence[str], config: Any, option: str) -> UserError:
    """The error for an option that the method of this run does not have."""
    from bt_jax.objectives import registry  # imports every method, and with them JAX

    method = config.objective.name
    own = [*registry.keys(method)] if method in registry.NAMES else [key for key in config.objective if key != "name"]
    owners = [name for name in registry.NAMES if option in registry.keys(name)]
    if not owners:
        fix = _did_you_mean(f"objective.{option}", [f"objective.{key}" for key in own])
        return UserError(f"Unknown config key 'objective.{option}'", fix)
    cause = f"{option} is an option of {_listed(owners)}; the method of this run is {method}"
    other = _with_method(argv, owners[0])
    return UserError(
        f"{cause}, which has the options {', '.join(own)}" if own else f"{cause}, which has no options",
        f"Leave it out{f', or write {other} for {owners[0]}' if other else ''}.",
    )


def check_method(argv: Sequence[str], config: Any) -> None:
    """Refuses a command that changes only the name of the method: the options of the recipe's method would stay.

    Raises:
      UserError: --config.objective.name is given, and the options are not those of that method.
    """
    if not any(word.lstrip("-").startswith("config.objective.name") for word in argv):
        return
    from bt_jax.objectives import registry

    name = config.objective.name
    if name in registry.NAMES and set(config.objective) - {"name"} != registry.keys(name).keys():
        other = _with_method(argv, name)
        raise UserError(
            f"--config.objective.name={name} changes the name of the method, but not its options",
            f"Write {other}." if other else "Set the whole section in a config file, as in docs/methods.md.",
        )


def unknown_flag(argv: Sequence[str], name: str, known: Sequence[str]) -> UserError:
    """The error for the unknown option --name, with the config key of that name or a similar option.

    Args:
      known: the names of all options.
    """
    given = next((word.lstrip("-") for word in argv if word.lstrip("-").partition("=")[0] == name), name)
    if name.startswith("config."):
        return no_config()
    keys_of_run = _flat(_config(argv)) or {key for kind in keys.TASKS.values() for key in _flat(kind())}
    meant = [key for key in keys_of_run if key in (name, ELSEWHERE.get(name))]
    meant = meant or [key for key in keys_of_run if key.endswith(f".{name}")]
    if not meant:
        close = difflib.get_close_matches(name, [*known, *(f"config.{key}" for key in keys_of_run)], n=1)
        question = f"Did you mean --{close[0]}? " if close else ""
        fix = f"{question}--help lists all options."
        return UserError(f"Unknown option --{name}", fix)
    value = given.partition("=")[2] or "VALUE"
    words = [f"--config.{key}={value}" for key in sorted(meant)]
    return UserError(f"Unknown option --{name}: it is a key of the config", f"Write {' or '.join(words)}.")


def unknown_word(argv: Sequence[str], word: str, is_recipe: bool) -> UserError:
    """The error for a word that is not an option.

    Args:
      is_recipe: the word names a recipe or a config file.
    """
    fix = "Write options as --name=value; see --help."
    key = word.removeprefix("config.").partition("=")[0]
    if is_recipe:
        fix = f"Write --config={word}."
    elif "=" in word and key in _flat(_config(argv)):
        fix = f"Write --config.{word.removeprefix('config.')}."
    elif "=" in word and key in flags.FLAGS:
        fix = f"Write --{word}."
    return UserError(f"Unknown argument {word!r}", fix)


def in_config_file(argv: Sequence[str], error: Exception) -> UserError | None:
    """The error for a config file that fails, with its line; None if the file itself is correct.

    Args:
      error: of the parsing. For TypeError and ValueError, ml_collections puts the whole traceback into the text.
    """
    file, text = _file(argv), str(error)
    define = "Define get_config(arg=None) in it, as in docs/recipes.md."
    if text.endswith("has no attribute 'get_config'"):
        return UserError(f"The config file {file} has no function get_config", define)
    frames = [(frame.filename, str(frame.lineno)) for frame in traceback.extract_tb(error.__traceback__)]
    reason = f"{type(error).__name__}: {' '.join(text.split())}"
    wrapped = "Error whilst parsing config file" in text
    if wrapped:
        frames, reason = re.findall(r'File "([^"]+)", line (\d+)', text), text.strip().splitlines()[-1]
    number = next((number for name, number in reversed(frames) if name == file), "")
    if not (number or wrapped):
        return None
    cause = f"The config file {file} fails{f' in line {number}' if number else ''}: {reason.rstrip('.')}"
    return UserError(cause, define if "get_config() takes" in reason else "Correct the file.")


def _file(argv: Sequence[str]) -> str:
    """The path of the config file on the command line."""
    recipe = next((word for word in argv if word.startswith("--config=")), "")
    return recipe.removeprefix("--config=").partition(":")[0]


def not_a_config(argv: Sequence[str], kind: str) -> UserError:
    """The error for a get_config that returns an object of another type, such as NoneType."""
    cause = f"The function get_config of {_file(argv)} returns an object of the type {kind}"
    return UserError(cause, "End it with `return config`.")


def no_config() -> UserError:
    return UserError("No --config is given", "Name a recipe, such as --config=quickstart.")


def task_of(recipe: str) -> str:
    """The task of a recipe, given by its path; "" if the file is not a config or fails."""
    if "get_config" not in Path(recipe.partition(":")[0]).read_text(errors="replace"):
        return ""  # another program of the user, which must not run
    config = _config([f"--config={recipe}"])
    return "" if config is None else config.get("task", "")


def _config(argv: Sequence[str]) -> Any:
    """The config of the recipe in argv, without overrides; None if there is none, or it fails."""
    recipe = next((word for word in argv if word.startswith("--config=")), None)
    if recipe is None:
        return None
    words, values = ["", recipe], flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=words)
    try:
        values(words)
        arguments.to_dict(values.config)  # a file that cannot be read fails here
    except Exception:  # any error of the user's file, or of its arguments
        return None
    return values.config


def _flat(config: Any) -> Mapping[str, Any]:
    return {} if config is None else arguments.flatten(arguments.to_dict(config))


def _with_method(argv: Sequence[str], method: str) -> str:
    """The option --config with another method, for the user to copy; "" if the recipe takes no method."""
    option = next(word for word in argv if word.startswith("--config="))
    path, items = command_line.recipe_without("method", option)
    recipe = ",".join([*items, f"method={method}"])
    config = _config([f"--config={path}:{recipe}"])
    taken = config is not None and config.get("objective", {}).get("name") == method
    return f"--config={command_line.short(path)}:{recipe}" if taken else ""


def _did_you_mean(key: str, valid: Sequence[str] | Mapping[str, Any]) -> str:
    close = [name for name in [ELSEWHERE.get(key)] if name in valid] or difflib.get_close_matches(key, [*valid], n=1)
    return f"Did you mean --config.{close[0]}? --help lists all keys." if close else SEE_HELP


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
