"""The command line of programs with a config: the --config flag, and one line for every mistake.

A program is `main(argv)` with absl's flags. `run(main, doc)` exits with status 0, or with that of a UserError after one
line on stderr.
"""

import importlib
import importlib.util
import logging as std_logging
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from bt_jax import messages, storage
from bt_jax.cli import jax_settings, mistakes
from bt_jax.config import keys
from bt_jax.config.arguments import suggestions
from bt_jax.messages import UserError, is_disk_full, line

RECIPES = Path(__file__).parents[1] / "configs"
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "a recipe by its name, such as quickstart, or a config file, such as mine.py; arguments follow a colon:"
    " quickstart:smoke. Each key below can be overridden: --config.optim.lr_weights=0.3",
    lock_config=True,
)


def run(
    main: Callable[[list[str]], None],
    doc: str,
    argv: list[str] | None = None,
    *,
    default: str = "",
    tasks: Iterable[str] = keys.TASKS,
) -> None:
    """Parses the command line and calls main([program]). All other words of the command line are options.

    Args:
      doc: the first part of the help.
      default: the recipe if the command line names none.
      tasks: the tasks whose keys the help lists.
    """
    if any(word in ("-h", "-help") or word.startswith("--help") for word in (argv or sys.argv)[1:]):
        with messages.lasting():
            print(_help(doc, tasks))
        sys.exit(0)
    logging._warn_preinit_stderr = False  # no "Logging before flag parsing goes to stderr"; absl has no public switch
    logging.set_verbosity(logging.WARNING)  # Orbax logs a hundred lines per save; --verbosity=0 shows them
    logging.get_absl_handler().addFilter(_is_not_reported_elsewhere)
    with messages.lasting():
        jax_settings.settle()
        _make_recipes_importable()
        try:
            sys.argv = _recipe_first(argv or sys.argv, default)  # ml_collections reads overrides from sys.argv
            app.run(main, argv=sys.argv, flags_parser=_parse)
        except UserError as error:
            print(f"bt_jax: {error}", file=sys.stderr)
            sys.exit(error.status)


def _help(doc: str, tasks: Iterable[str]) -> str:
    modules = flags.FLAGS.flags_by_module_dict()
    own = [each for name, each in modules.items() if name == sys.argv[0] or name.startswith("bt_jax.")]
    options = [keys.entry("--config=RECIPE[:ARGUMENTS]", flags.FLAGS["config"].help)]
    for flag in sum(own, []):
        if flag.name != "config":
            value = "" if flag.boolean else f"={flag.name.upper()}"
            options.append(keys.entry(f"--{flag.name}{value}", flag.help))
    described = "\n".join(options)
    return f"{doc.rstrip()}\n\n{described}\n\nKeys of a config and their defaults:\n{keys.describe(tasks)}"


def _is_not_reported_elsewhere(record: std_logging.LogRecord) -> bool:
    """False for what a UserError says: Orbax's tracebacks of disk-full and bucket errors, warnings of config_flags."""
    if record.module == "config_flags":
        return False
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not (is_disk_full(error) or storage.as_user_error(error, ""))


def _recipe_first(argv: list[str], default: str) -> list[str]:
    """The arguments with --config before the keys that override it, and with its recipe as a path."""
    program, rest, named, recipe = argv[:1], iter(argv[1:]), [], default
    others: list[str] = []
    for argument in rest:
        if argument.lstrip("-").partition("=")[0] == "config" and argument.startswith("-"):
            recipe = argument.partition("=")[2] if "=" in argument else next(rest, "")
        else:
            others.append(argument)
    if recipe:
        named = [f"--config={find_recipe(recipe)}"]
    return [*program, *named, *others]


def find_recipe(recipe: str) -> str:
    """The path, with arguments, of "FILE.py:arguments" or of a recipe of the package such as "quickstart:smoke".

    Raises:
      UserError: there is neither a config file nor a recipe of that name.
    """
    name, colon, arguments = recipe.partition(":")
    name = os.path.expanduser(name)  # shells expand ~ only at the start of a word
    is_file = os.path.isfile(name)
    if is_file and not name.endswith(".json"):
        return f"{name}{colon}{arguments}"
    stem = name.removeprefix("configs/").removesuffix(".py")
    names = sorted(path.stem for path in RECIPES.glob("*.py") if path.stem != "__init__")
    if stem in names:
        return f"{RECIPES / stem}.py{colon}{arguments}"
    if is_file or os.path.isfile(os.path.join(name, "config.json")):
        fix = "To resume a run, give its command again; to evaluate it, set --config.encoder instead."
        raise UserError(f"{name} is {'a JSON file' if is_file else 'a run folder'}, not a recipe", fix)
    raise UserError(f"There is no config file {name}", f"Name a file, or a recipe: {suggestions(stem, names)}.")


def is_recipe(word: str) -> bool:
    """Whether the word names a recipe or a Python file, with or without arguments."""
    try:
        return find_recipe(word).partition(":")[0].endswith(".py")
    except UserError:
        return False


def _make_recipes_importable() -> None:
    """Lets a config file import the recipes as `configs`, unless Python finds another module of that name."""
    if importlib.util.find_spec("configs") is None:
        sys.modules["configs"] = importlib.import_module("bt_jax.configs")


def _parse(argv: list[str]) -> list[str]:
    """Parses absl's flags; UserError for every mistake."""
    try:
        rest = flags.FLAGS(argv)
    except UserError:
        raise
    except ImportError as error:
        text = line(error)
        needs_recipes = re.search(r"\bconfigs\b", text)
        fix = "Compare the name with the files of bt_jax/configs; a module of your own called configs hides them."
        raise UserError(
            f"The config file imports a missing module: {text}",
            fix if needs_recipes else "Install it, or set PYTHONPATH to its folder.",
        ) from None
    except (AttributeError, KeyError) as error:
        raise mistakes.in_config_file(argv, error) or mistakes.unknown_key(argv, str(error)) from None
    except flags.UnrecognizedFlagError as error:
        raise mistakes.unknown_flag(argv, error.flagname, [*flags.FLAGS]) from None
    except flags.IllegalFlagValueError as error:
        raise mistakes.in_config_file(argv, error) or _invalid_value(str(error)) from None
    except Exception as error:
        other = UserError(" ".join(str(error).split()), "See --help and the docstring of the config file.")
        raise mistakes.in_config_file(argv, error) or other from None
    _check(argv, rest)
    return rest


def _check(argv: list[str], rest: list[str]) -> None:
    """UserError for words that are no options, and for a config that no task can read."""
    file = config_flags.get_config_filename(flags.FLAGS["config"]) if flags.FLAGS["config"].present else ""
    if rest[1:]:
        raise mistakes.unknown_word(argv, rest[1], is_recipe(rest[1]))
    if not file:
        raise mistakes.no_config()
    config = flags.FLAGS["config"].value
    if not isinstance(config, ConfigDict):
        raise mistakes.not_a_config(argv, type(config).__name__)
    mistakes.check_method(argv, config)


def _invalid_value(text: str) -> UserError:
    """The error for a value of another type, from absl's text: "flag --config.seed=x: invalid literal for int() …"."""
    option, _, reason = " ".join(text.split()).removeprefix("flag ").partition(": ")
    kinds = {
        "invalid literal for int": ("an integer", "128"),
        "could not convert string to float": ("a number", "0.5"),
        "Non-boolean argument": ("a switch", "True or False"),
    }
    kind, example = next((kinds[start] for start in kinds if start in reason), ("", ""))
    if not kind:
        return UserError(f"{option}: {reason}", "See --help and the docstring of the config file.")
    return UserError(f"{option} is not {kind}", f"Write {option.partition('=')[0]}={example}, for example.")
