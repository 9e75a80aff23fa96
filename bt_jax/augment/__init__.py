"""Augmentations on the device: two views of every image by a recipe, and the operations that make them.

    view1, view2 = augment.two_views(key, images, "cifar")

The operations take one float32 image (h, w, c) in [0, 1]. Names are imported on their first use, so that
`bt_jax.augment.recipes`, which configs need, does not load JAX.
"""

import importlib
from typing import Any

_MODULES = {
    "colour": ("adjust_brightness", "adjust_contrast", "adjust_hue", "adjust_saturation", "solarize", "to_grayscale"),
    "filters": ("center_crop_of_resize", "gaussian_blur", "horizontal_flip", "resized_crop"),
    "recipes": ("RECIPES", "Recipe", "View"),
    "views": ("evaluation_view", "normalise", "two_views"),
}
__all__ = ["recipes", *(name for names in _MODULES.values() for name in names)]


def __getattr__(name: str) -> Any:
    if name == "recipes":
        return importlib.import_module("bt_jax.augment.recipes")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"bt_jax.augment.{module}"), name)
    raise AttributeError(f"module 'bt_jax.augment' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
