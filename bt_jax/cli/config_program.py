"""What the programs that take a config share: the --config flag, and every mistake in one line.

A program is `main(argv)` under absl's flags; `run(main, doc)` gives it exit status 0, or the error's with one
line on stderr.
"""

import logging as std_logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from bt_jax import messages, storage
from bt_jax.cli import jax_settings
from bt_jax.messages import UserError, is_disk_full, line

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, with arguments after a colon: configs/pretrain_cifar10_r18.py:smoke. Every key can be"
    " overridden: --config.optim.lr_weights=0.3",
    lock_config=True,
)


def run(main: Callable[[list[str]], None], doc: str, argv: list[str] | None = None) -> None:
    """Parses the command line and calls main(argv) with what is not a flag; `doc` heads the help."""
    if any(argument.startswith("--help") for argument in argv or sys.argv):
        from bt_jax.config import keys

        sys.modules["__main__"].__doc__ = f"{doc}\nKeys of a config and their defaults:\n{keys.describe()}\n"
    logging.set_verbosity(logging.WARNING)  # Orbax tells a hundred things a save; --verbosity=0 shows them
    logging.get_absl_handler().addFilter(_is_told_by_nobody_else)
    with messages.lasting():
        jax_settings.settle()
        _make_recipes_importable()
        try:
            app.run(main, argv=argv, flags_parser=_parse)
        except UserError as error:
            print(f"bt_jax: {error}", file=sys.stderr)
            sys.exit(error.status)


def _is_told_by_nobody_else(record: std_logging.LogRecord) -> bool:
    """A full disk and a bucket out of reach are told of in one line by whoever waits for the save; Orbax's threads log
    their tracebacks as well."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not (is_disk_full(error) or storage.explained(error, ""))


def _make_recipes_importable() -> None:
    """A config file imports `configs` from any working folder, where bt_jax is a checkout, which has them beside it."""
    checkout = str(Path(storage.__file__).resolve().parents[1])
    if (Path(checkout) / "configs").is_dir() and checkout not in sys.path:
        sys.path.append(checkout)  # last: what the working folder has under that name stays the first


def _parse(argv: list[str]) -> list[str]:
    """absl's flags, with every mistake in one line."""
    try:
        rest = flags.FLAGS(argv)
    except UserError:
        raise
    except ImportError as error:
        told = line(error)
        needs_recipes = re.search(r"\bconfigs\b", told)
        cure = "Start in the repository of bt_jax, or set PYTHONPATH to it: the recipes are in its folder configs/."
        raise UserError(
            f"The config file imports what is not there: {told}",
            cure if needs_recipes else "Install it, or set PYTHONPATH to the folder that has it.",
        ) from None
    except (AttributeError, KeyError) as error:
        raise _unknown_key(argv, str(error)) from None
    except Exception as error:
        raise UserError(" ".join(str(error).split()), "See --help and the head of the config file.") from None
    given = config_flags.get_config_filename(flags.FLAGS["config"]) if flags.FLAGS["config"].present else ""
    if not given:
        raise UserError("No --config is given", "Name a file of configs/, such as --config=configs/quickstart.py.")
    if not os.path.isfile(given.split(":")[0]):  # ml_collections would say so only when the config is first read
        raise UserError(f"There is no config file {given.split(':')[0]}", "Name a file of configs/.")
    return rest


def _unknown_key(argv: list[str], text: str) -> UserError:
    """ml_collections names the key and the whole config; the person wants the key and its neighbours."""
    from bt_jax.config import arguments, keys

    tasks = (keys.pretrain, keys.evaluate, keys.finetune)
    valid = {key for task in tasks for key in arguments.flatten(arguments.to_dict(task()))}
    given = [a.removeprefix("--config.").partition("=")[0] for a in argv if a.startswith("--config.")]
    unknown = [key for key in given if key not in valid]
    if not unknown:
        return UserError(" ".join(text.split())[:300], "See --help and the head of the config file.")
    nearest = arguments.suggestions(unknown[0], valid).split(", ")[0]
    return UserError(
        f"Unknown config key {unknown[0]!r}", f"Did you mean {nearest}? bt_jax/config/keys.py lists them all."
    )
