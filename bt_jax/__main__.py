"""The command bt-jax, and `python -m bt_jax`: its first word says what to do.

    bt-jax pretrain --config=quickstart --workdir=RUN      trains an encoder on images without labels
    bt-jax evaluate --config.encoder=RUN --workdir=OUT     kNN, linear probe, spectrum
    bt-jax finetune --config.encoder=RUN --workdir=OUT     trains a classifier on an encoder
    bt-jax embed    --encoder=RUN --folder=IMAGES ...      writes the features of images
    bt-jax convert  RUN --to=torch --out=FILE              writes weights for other libraries, or reads theirs
    bt-jax prepare  --folder=IMAGES                        checks a data set, and writes it as npz or TFRecord shards
    bt-jax report   RUN ...                                writes report.html again, or compares runs
    bt-jax plan     --config=... --topology=v5e:4x4        estimates a training step on a TPU slice
    bt-jax selfcheck                                       compares what this machine computes with stored numbers

`bt-jax COMMAND --help` explains the options of each, and `bt-jax --version` prints the version.
"""

import difflib
import runpy
import sys
from collections.abc import Sequence

import bt_jax

TASKS = ("pretrain", "evaluate", "finetune")
TOOLS = ("embed", "convert", "prepare", "report", "plan", "selfcheck")


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status, or raises SystemExit with it."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0 if words else 2
    command, *rest = words
    if command == "--version":
        print(f"bt_jax {bt_jax.__version__}")
        return 0
    if command not in TASKS + TOOLS:
        print(f"bt-jax: Unknown command {command!r}. {_meant(command)}", file=sys.stderr)
        return 2
    sys.argv = [f"bt-jax {command}", *rest]
    if command in TASKS:
        from bt_jax import main as program  # absl's flags are defined when it is imported

        program.run(sys.argv, task=command)
    else:
        runpy.run_module(f"bt_jax.{command}", run_name="__main__", alter_sys=False)
    return 0


def _meant(word: str) -> str:
    """The fix for a word that is no command."""
    from bt_jax.cli import config_program, mistakes  # takes seconds, as it imports JAX

    if config_program.is_recipe(word) and (task := mistakes.task_of(config_program.find_recipe(word))):
        encoder = "" if task == "pretrain" else " --config.encoder=RUN"
        return f"It is a recipe: write bt-jax {task} --config={word}{encoder} --workdir={'OUT' if encoder else 'RUN'}."
    close = difflib.get_close_matches(word, TASKS + TOOLS, n=1)
    question = f"Did you mean {close[0]}? " if close else ""
    return f"{question}bt-jax --help lists all commands."


if __name__ == "__main__":
    sys.exit(main())
