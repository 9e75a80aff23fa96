"""Augmentations on the device: the image operations, and two views of every image.

Names are imported on their first use, so that `bt_jax.augment.recipes`, which configs need, does not load JAX.
"""

import importlib

_MODULES = {
    "colour": ("adjust_brightness", "adjust_contrast", "adjust_hue", "adjust_saturation", "solarize", "to_grayscale"),
    "filters": ("center_crop_of_resize", "gaussian_blur", "horizontal_flip", "resized_crop"),
    "views": ("evaluation_view", "normalise", "two_views"),
}


def __getattr__(name: str):
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"bt_jax.augment.{module}"), name)
    raise AttributeError(f"module 'bt_jax.augment' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(name for names in _MODULES.values() for name in names)
