"""Evaluators of frozen features. `bt_jax.evals.knn` and `bt_jax.evals.probe` are for other programs too."""

import importlib

__all__ = ["knn", "probe"]


def __getattr__(name: str):
    if name in __all__:  # imported when it is used
        return importlib.import_module(f"bt_jax.evals.{name}")
    raise AttributeError(f"module 'bt_jax.evals' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
