"""The program: `python -m bt_jax.main --config=configs/FILE.py[:args] --workdir=DIR [--config.KEY=VALUE ...]`.

Trains what the config describes and writes everything to the work folder. Given again, the same command goes on from
the newest checkpoint. A config file opens with its command, its hardware and the number it must reach.
"""

import os
import sys
import time

STARTED = time.monotonic()

from absl import app, flags, logging  # noqa: E402  (the clock starts before the imports, which take seconds)
from ml_collections import config_flags  # noqa: E402

from bt_jax.errors import UserError  # noqa: E402

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, with arguments after a colon: configs/pretrain_cifar10_r18.py:smoke. Every key can be"
    " overridden: --config.optim.lr_weights=0.3",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string("workdir", None, "Run folder: made if absent, continued if it holds the same run.")


def main(argv: list[str]) -> None:
    """Dispatches on config.task."""
    if len(argv) > 1:
        raise UserError(f"Unknown argument {argv[1]!r}", "Options are written --name=value; see --help.")
    if WORKDIR.value is None:
        raise UserError("No --workdir is given", "Name the folder the run is written to.")
    config = CONFIG.value
    _compile_cache(config.compile_cache)
    if config.task != "pretrain":
        raise UserError(f"config.task={config.task!r} is unknown", "Choose from pretrain.")
    from bt_jax import checkpoint, pretrain

    try:
        pretrain.run(config, WORKDIR.value, started=STARTED)
    except OSError as error:
        if not checkpoint.is_disk_full(error):
            raise
        cure = "Free some space and give the same command again: it goes on from the newest whole checkpoint."
        raise UserError(f"The disk is full while writing to {WORKDIR.value}", cure) from error


def _compile_cache(folder: str) -> None:
    """Keeps compiled programs, so that a restart does not wait for the compiler again."""
    import jax

    if folder == "auto":
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "bt_jax", "xla")
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 5.0)


def _parse(argv: list[str]) -> list[str]:
    """absl's flags, with every mistake in one line."""
    try:
        rest = flags.FLAGS(argv)
    except UserError:
        raise
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
    from bt_jax import config as config_lib

    valid = config_lib.flatten(config_lib.to_dict(config_lib.pretrain()))
    given = [a.removeprefix("--config.").partition("=")[0] for a in argv if a.startswith("--config.")]
    unknown = [key for key in given if key not in valid]
    if not unknown:
        return UserError(" ".join(text.split())[:300], "See --help and the head of the config file.")
    nearest = config_lib.suggestions(unknown[0], valid).split(", ")[0]
    return UserError(f"Unknown config key {unknown[0]!r}", f"Did you mean {nearest}? bt_jax/config.py lists them all.")


def run(argv: list[str] | None = None) -> None:
    """Entry point: exit status 0, or 2 with one line on stderr for anything the user can mend."""
    if any(argument.startswith("--help") for argument in argv or sys.argv):
        from bt_jax import config as config_lib

        sys.modules["__main__"].__doc__ = f"{__doc__}\nKeys of a config and their defaults:\n{config_lib.describe()}\n"
    logging.set_verbosity(logging.WARNING)  # Orbax tells a hundred things a save; --verbosity=0 shows them
    try:
        app.run(main, argv=argv, flags_parser=_parse)
    except UserError as error:
        print(f"bt_jax: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
