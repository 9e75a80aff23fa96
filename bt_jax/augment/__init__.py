"""Augmentations on the device: the operations, and two views of every image made of them.

Names are looked up when they are used, so that `bt_jax.augment.recipes`, which configs need, does not load JAX.
"""

import importlib

_HOMES = {
    "colour": ("adjust_brightness", "adjust_contrast", "adjust_hue", "adjust_saturation", "solarize", "to_grayscale"),
    "filters": ("center_crop_of_resize", "gaussian_blur", "horizontal_flip", "resized_crop"),
    "views": ("evaluation_view", "normalise", "two_views"),
}


def __getattr__(name: str):
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"bt_jax.augment.{home}"), name)
    raise AttributeError(f"module 'bt_jax.augment' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(name for names in _HOMES.values() for name in names)
