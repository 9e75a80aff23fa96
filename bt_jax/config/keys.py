"""Configs as config files see them: a mutable ConfigDict with every key of a task, made from the sections."""

import dataclasses
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from bt_jax.augment import recipes
from bt_jax.config import arguments
from bt_jax.config.encoder_tasks import Evaluate, Finetune
from bt_jax.config.pretraining import Pretrain
from bt_jax.config.sections import Run, Section
from bt_jax.messages import UserError

TASKS: dict[str, type[Run]] = {"pretrain": Pretrain, "evaluate": Evaluate, "finetune": Finetune}


def pretrain() -> ConfigDict:
    """All keys of `task = "pretrain"`. The values are neutral defaults; recipes are in `configs/`."""
    return _config(Pretrain())


def evaluate() -> ConfigDict:
    """All keys of `task = "evaluate"`: protocols on frozen features."""
    return _config(Evaluate())


def finetune() -> ConfigDict:
    """All keys of `task = "finetune"`: a linear classifier on an encoder, trained by gradient descent."""
    return _config(Finetune())


def _config(section: Section) -> ConfigDict:
    """A ConfigDict of a section and those in it, with placeholders for values that are filled in later."""
    config = ConfigDict()
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if isinstance(value, Section):
            config[field.name] = _config(value)
        elif isinstance(value, Mapping):  # a view, or the options of a method
            defaults = {each.name: each.default for each in dataclasses.fields(recipes.View)}
            config[field.name] = ConfigDict(
                {name: placeholder(type(defaults[name])) if each is None else each for name, each in value.items()}
            )
        else:
            config[field.name] = placeholder(tuple) if value is None else value
    return config


def read(config: ConfigDict) -> Any:
    """The sections of a config, checked: a Pretrain, an Evaluate or a Finetune, by its task.

    Raises:
      UserError: a value that no run can have.
    """
    task = arguments.choose("config.task", config.task, TASKS)
    return _section(TASKS[task], config)


def _section(kind: type[Section], config: ConfigDict, path: str = "config") -> Any:
    names = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(set(config) - set(names)):
        fix = f"Keys of {path}: {arguments.suggestions(unknown[0], names)}."
        raise UserError(f"The config file sets the unknown key {path}.{unknown[0]}", fix)
    values = {}
    for field in dataclasses.fields(kind):
        value = config[field.name]
        if dataclasses.is_dataclass(field.type):
            value = _section(field.type, value, f"{path}.{field.name}")
        elif isinstance(value, ConfigDict):
            value = value.to_dict()
        values[field.name] = value
    return kind(**values)


def describe(tasks: Iterable[str] = TASKS) -> str:
    """Every key of the tasks with its default and its help; shared keys are listed under the first task."""
    lines, seen = [], set()
    for name in tasks:
        lines.append(f"\n  task {name}:")
        for path, default, text in _described(TASKS[name]()):
            if (path, default, text) not in seen:
                seen.add((path, default, text))
                lines.append(entry(f"--config.{path}={default}", text))
    return "\n".join(lines)


def entry(option: str, text: str) -> str:
    """An option and its help, wrapped to the terminal, or to 120 columns."""
    columns = max(shutil.get_terminal_size((120, 0)).columns, 80)
    start, further = f"  {option}".ljust(42) + "  ", " " * 44
    return textwrap.fill(
        text, columns, initial_indent=start, subsequent_indent=further, break_on_hyphens=False, break_long_words=False
    )


def _described(section: Section, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, default, help) of a section and those in it."""
    for field in dataclasses.fields(section):
        value, text = getattr(section, field.name), field.metadata.get("help", "")
        if isinstance(value, Section):
            yield from _described(value, f"{prefix}{field.name}.")
        elif texts := field.metadata.get("keys"):
            yield from ((f"{prefix}{field.name}.{name}", repr(value[name]), texts[name]) for name in value)
        elif isinstance(value, Mapping):
            yield f"{prefix}{field.name}.FIELD", "(the recipe's)", f"{text}: {', '.join(value)}"
        else:
            yield prefix + field.name, "(filled in later)" if value is None else repr(value), text


def shrink(config: ConfigDict, *, train_split: str, val_split: str) -> ConfigDict:
    """The `:smoke` form of a config: the same program on few images with a narrow net, in seconds on a CPU."""
    config.smoke = True
    config.batch_size, config.tuned_batch_size = 16, 0
    config.total_epochs = 2.0
    config.data.train_split, config.data.val_split = train_split, val_split
    config.model.width = 0.125
    config.model.projector = (64, 64, 64)
    config.model.dtype = "float32"
    config.optim.warmup_epochs = 0.5
    config.evals.every_epochs = 1.0
    config.evals.batch_size = 32
    config.evals.spectrum_images = 64
    config.evals.knn_k = 20
    config.log.every_steps = 2
    config.checkpoint.every_epochs = 1.0
    return config


def shrink_finetune(config: ConfigDict) -> ConfigDict:
    """The `:smoke` form of a config that fine-tunes."""
    config.smoke = True
    config.batch_size, config.total_epochs = 16, 2.0
    config.data.fraction = 0.01
    config.model.dtype = "float32"
    config.evals.every_epochs = 1.0
    config.evals.batch_size = 32
    config.evals.val_images = 64
    return config
