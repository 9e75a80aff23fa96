"""What a recipe of two views may ask for, and the recipes that papers and peers used, with their numbers."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bt_jax.messages import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # reference main.py, Transform
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # solo-learn, CIFAR-10's own statistics
INTERPOLATIONS = ("bicubic", "bilinear")  # `filters` has their kernels


@dataclasses.dataclass(frozen=True)
class View:
    """What may happen to an image on its way to one view, in this order. Defaults: the reference main.py, view 1.

    The flip commutes with everything after the crop (the others act on single pixels or are symmetric), so recipes
    that flip last, such as solo-learn's, need no option.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area, uniform
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, log-uniform
    interpolation: str = "bicubic"  # or "bilinear"; both antialiased, as in Pillow
    flip: float = 0.5  # probability
    jitter: float = 0.8  # probability of the four below, in random order
    brightness: float = 0.4  # factor in 1 -+ this
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1  # turns in -+ this
    grayscale: float = 0.2  # probability
    blur: float = 1.0  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels of the view, uniform
    solarize: float = 0.0  # probability
    solarize_threshold: float = 128 / 255  # Pillow's default, at and above which a value is inverted

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability between 0 and 1")
        for name in ("brightness", "contrast", "saturation"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a number that is not negative")
        for name, top in (("crop_scale", 1), ("crop_ratio", math.inf), ("blur_sigma", math.inf)):
            pair = getattr(self, name)
            good = isinstance(pair, tuple) and len(pair) == 2 and 0 < pair[0] <= pair[1] <= top
            _require(good, name, pair, f"two positive numbers, the smaller first{', up to 1' if top == 1 else ''}")
        _require(0 <= self.hue <= 0.5, "hue", self.hue, "turns between 0 and 0.5")
        _require(self.interpolation in INTERPOLATIONS, "interpolation", self.interpolation, " or ".join(INTERPOLATIONS))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Two views of `size` pixels, then (x - mean) / std per channel with x in [0, 1]. Hashable: static under jit."""

    size: int
    view1: View
    view2: View
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        _require(isinstance(self.size, int) and self.size > 0, "size", self.size, "a positive number of pixels")
        _require(len(self.mean) == len(self.std), "mean", self.mean, "as many numbers as std")
        _require(all(map(math.isfinite, self.mean)), "mean", self.mean, "finite numbers")
        good = all(math.isfinite(value) and value > 0 for value in self.std)
        _require(good, "std", self.std, "finite numbers above 0")


def imagenet(size: int = 224) -> Recipe:
    """The paper's, section 2.1, with the numbers of the reference main.py: the views differ in blur and solarise."""
    return Recipe(size, View(), View(blur=0.1, solarize=0.2))


def cifar(size: int = 32) -> Recipe:
    """solo-learn's scripts/pretrain/cifar/augmentations/asymmetric.yaml: no blur."""
    return Recipe(size, View(blur=0.0), View(blur=0.0, solarize=0.2), CIFAR_MEAN, CIFAR_STD)


def lightly_cifar(size: int = 32) -> Recipe:
    """lightly's cifar10_benchmark.py: BYOL's transform without blur; the crop keeps torchvision's default, bilinear."""
    view = View(blur=0.0, interpolation="bilinear")
    return Recipe(size, view, dataclasses.replace(view, solarize=0.2))


def grayscale(size: int = 28) -> Recipe:
    """One channel: the reference's crop, flip, blur and solarise; there is no colour to change."""
    view = View(jitter=0.0, grayscale=0.0)
    return Recipe(size, view, dataclasses.replace(view, blur=0.1, solarize=0.2), (0.5,), (0.5,))


RECIPES: dict[str, Callable[..., Recipe]] = {
    "imagenet": imagenet,
    "cifar": cifar,
    "lightly_cifar": lightly_cifar,
    "grayscale": grayscale,
}


def recipe_from_config(config: Mapping[str, Any]) -> Recipe:
    """Recipe from plain data: {"name": "imagenet", "size": 224} and what differs, such as {"view1": {"blur": 0.5}}."""
    _require_known(config, ["name", *(field.name for field in dataclasses.fields(Recipe))], "augmentation key")
    config = dict(config)
    name = config.pop("name", None)
    _require_known([name], list(RECIPES), "augmentation recipe")
    size = config.pop("size", None)
    recipe = RECIPES[name]() if size is None else RECIPES[name](size)
    changes = {}
    for key, value in config.items():
        if key in ("view1", "view2"):
            _require_known(value, [field.name for field in dataclasses.fields(View)], f"augmentation key in {key}")
            changes[key] = dataclasses.replace(getattr(recipe, key), **{k: _frozen(v) for k, v in value.items()})
        else:
            changes[key] = _frozen(value)
    return dataclasses.replace(recipe, **changes)


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else value


def _require(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise UserError(f"augmentation: {name} is {value!r}", f"Give {wanted}")


def _require_known(names: Iterable[object], valid: list[str], what: str) -> None:
    for name in names:
        if name not in valid:
            close = difflib.get_close_matches(str(name), valid, n=3) or sorted(valid)
            raise UserError(f"unknown {what} {name!r}", f"Use {' or '.join(close)}")
