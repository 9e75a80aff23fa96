"""The command line of this process with another batch, for messages that advise it."""

import shlex
import sys
from pathlib import Path


def with_batch(batch: int, *, argument: bool) -> str:
    """A command line to copy; "" if this process has no `--config=`, as in a program that imports bt_jax.

    Args:
      argument: the recipe takes the batch as an argument, and sets the learning rates for it.
    """
    program, *words = sys.argv
    recipes = [word for word in words if word.startswith("--config=")]
    if not recipes:
        return ""
    kept = [word for word in words if not word.startswith(("--config=", "--config.batch_size="))]
    path, others = recipe_without("batch", recipes[-1])
    if argument:
        others.insert(0, f"batch={batch}")
    else:
        kept.append(f"--config.batch_size={batch}")
    recipe = ":".join(filter(None, (short(path), ",".join(others))))
    start = program if program.startswith("bt-jax") else "python -m bt_jax.main"
    return f"{start} {shlex.join([f'--config={recipe}', *kept])}"


def recipe_without(argument: str, option: str) -> tuple[str, list[str]]:
    """The path and the arguments in an option --config=PATH:ARGUMENTS, less one argument."""
    path, _, arguments = option.removeprefix("--config=").partition(":")
    return path, [item for item in arguments.split(",") if item and not item.startswith(f"{argument}=")]


def short(path: str) -> str:
    """The name of a recipe of the package, or the path of another config file."""
    file = Path(path)
    return file.stem if file.parent == Path(__file__).parents[1] / "configs" else path
