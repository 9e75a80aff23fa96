"""The methods of self-supervised learning, one in each file, and the functions that they share.

`NAMES` are the names of the methods. `evaluate_loss` computes the loss of a method from outputs of its networks.
`select` sets the method of a config.
"""

import importlib
from collections.abc import Mapping
from typing import Any


def __getattr__(name: str):
    if name in ("NAMES", "evaluate_loss"):  # imported on first use, because the registry imports every method
        return getattr(importlib.import_module("bt_jax.objectives.registry"), name)
    raise AttributeError(f"module 'bt_jax.objectives' has no attribute {name!r}")


def select(
    config: Any,
    name: str,
    options: Mapping[str, Mapping[str, Any]] = {},
    recipes: Mapping[str, Mapping[str, Any]] = {},
) -> None:
    """Sets the method of a recipe for Barlow Twins: its keys, and the projector of its official code.

    The factor on the gradient becomes 1: it belongs to the arithmetic of Barlow Twins. Everything else stays, except
    for the sections in `recipes`.

    Args:
      config: a ConfigDict of `bt_jax.config.pretrain`; changed in place.
      name: a key of `registry.METHODS`. The method that the config has is left as it is, without loading JAX.
      options: method -> keys of `config.objective` that this recipe sets.
      recipes: method -> sections of the config, as in `published`.

    Raises:
      UserError: there is no method of that name.
    """
    if name == config.objective.name:
        return
    registry = importlib.import_module("bt_jax.objectives.registry")
    keys = registry.keys(name, option="method")
    with config.unlocked():
        config.objective = {"name": name, **keys, **options.get(name, {})}
    config.model.update(registry.METHODS[name].objective.model)
    config.optim.grad_scale = 1.0
    for key, value in recipes.get(name, {}).items():
        if isinstance(value, Mapping):
            config[key].update(value)
        else:
            config[key] = value
