"""Arguments of a config file, and keys by name: parsed, compared, suggested."""

import dataclasses
import difflib
import json
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from bt_jax.messages import UserError

RENAMED_KEYS = {  # of 0.1.0 -> the new name
    "loss.lambd": "objective.lambd",
    "loss.form": "objective.form",
    "model.two_passes": "objective.two_passes",
    "model.head": "model.projector_sharding",
    "optim.lr_head": "optim.lr_classifier",
}


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """The part of --config after the colon: "batch=256,smoke" with defaults batch=2048, smoke=False.

    Args:
      arg: comma-separated `key=value`, or `key` alone for a switch.
      **defaults: every key the config knows; a value takes its default's type.

    Raises:
      UserError: an unknown key or a value of the wrong type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, given, text = item.partition("=")
        if key not in defaults:
            raise UserError(f"Unknown config argument {key!r}", f"This config knows {suggestions(key, defaults)}.")
        kind = type(defaults[key])
        try:
            values[key] = _switch(text if given else "true") if kind is bool else kind(text)
        except ValueError:
            raise UserError(
                f"Config argument {key}={text!r} is not of type {kind.__name__}", f"Write e.g. {key}={defaults[key]}."
            ) from None
    return ConfigDict(values)


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "1")


def choose(name: str, value: str, valid: Iterable[str]) -> str:
    """The value, or a UserError that names the valid ones, and the close one."""
    if value not in valid:
        close = difflib.get_close_matches(value, [*valid], n=1)
        question = f"Did you mean {close[0]}? " if close else ""
        raise UserError(f"{name}={value!r} is unknown", f"{question}Choose from {suggestions(value, valid)}.")
    return value


def suggestions(key: str, valid: Iterable[str]) -> str:
    """The valid names, the closest first, for an error message."""
    valid = sorted(valid)
    close = difflib.get_close_matches(key, valid, n=1)
    return ", ".join(close + [name for name in valid if name not in close])


def to_dict(config: Any) -> dict:
    """A ConfigDict or its sections as RUN/config.json has them: plain JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)) if dataclasses.is_dataclass(config) else config.to_json())


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    """{"optim": {"name": "lars"}} as {"optim.name": "lars"}."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
