"""Methods of self-supervised learning, one in each file, and the functions that they share.

`NAMES` are those that come with the package; `evaluate_loss` computes the loss of one on given outputs.
"""

import importlib


def __getattr__(name: str):
    if name in ("NAMES", "evaluate_loss"):  # looked up when used: the registry imports every method
        return getattr(importlib.import_module("bt_jax.objectives.registry"), name)
    raise AttributeError(f"module 'bt_jax.objectives' has no attribute {name!r}")
