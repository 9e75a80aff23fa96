"""Barlow Twins self-supervised pretraining in JAX (Zbontar et al., arXiv 2103.03230).

net, variables = bt_jax.load_encoder("runs/quickstart")
features = net.apply(variables, bt_jax.preprocess(images, net), train=False)
"""

import importlib

from bt_jax.processes import huge_pages
from bt_jax.terminal import interrupts

if interrupts.is_command():
    huge_pages.restart_with_them()
interrupts.install()  # first: Ctrl-C may come while a command imports the rest

from bt_jax import compilers  # noqa: E402

__version__ = "0.1.0"
__all__ = ["augment", "convert", "evals", "load_encoder", "losses", "models", "objectives", "optim", "preprocess"]

_FUNCTIONS = {"load_encoder": "bt_jax.weights.load", "preprocess": "bt_jax.models.inputs"}  # name -> its module


def __getattr__(name: str):
    # Submodules are imported when they are used: `import bt_jax` takes no time and touches no device.
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in __all__:
        return importlib.import_module(f"bt_jax.{name}")
    raise AttributeError(f"module 'bt_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


compilers.install()  # before any backend starts: releases of XLA that compute wrongly
