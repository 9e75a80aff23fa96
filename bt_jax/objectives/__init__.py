"""The methods of self-supervised learning, one in each file, and the functions that they share.

`NAMES` are the names of the methods. `evaluate_loss` computes the loss of a method from outputs of its networks.
"""

import importlib


def __getattr__(name: str):
    if name in ("NAMES", "evaluate_loss"):  # imported on first use, because the registry imports every method
        return getattr(importlib.import_module("bt_jax.objectives.registry"), name)
    raise AttributeError(f"module 'bt_jax.objectives' has no attribute {name!r}")
