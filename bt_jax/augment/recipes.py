"""View recipes: the settings of two views, and the recipes of papers and of other libraries with their numbers."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bt_jax.messages import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # reference main.py, Transform
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # solo-learn: statistics of CIFAR-10
INTERPOLATIONS = ("bicubic", "bilinear")  # `filters` has their kernels


@dataclasses.dataclass(frozen=True)
class View:
    """The operations of one view, in the order of the fields. The defaults are view 1 of the reference main.py.

    The flip commutes with all operations after the crop, which act on single pixels or are symmetric. Therefore recipes
    with the flip at the end, such as solo-learn's, need no option.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area, uniform
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, log-uniform
    interpolation: str = "bicubic"  # or "bilinear"; both antialiased, as in Pillow
    flip: float = 0.5  # probability
    jitter: float = 0.8  # probability of the next four operations, which come in random order
    brightness: float = 0.4  # largest difference of the factor from 1
    contrast: float = 0.4  # largest difference of the factor from 1
    saturation: float = 0.2  # largest difference of the factor from 1
    hue: float = 0.1  # largest rotation in turns, in both directions
    grayscale: float = 0.2  # probability
    blur: float = 1.0  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels of the view, uniform
    solarize: float = 0.0  # probability
    solarize_threshold: float = 128 / 255  # values at and above it are inverted; Pillow's default

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability between 0 and 1")
        for name in ("brightness", "contrast", "saturation"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a number that is not negative")
        for name, top in (("crop_scale", 1), ("crop_ratio", math.inf), ("blur_sigma", math.inf)):
            pair = getattr(self, name)
            valid = isinstance(pair, tuple) and len(pair) == 2 and 0 < pair[0] <= pair[1] <= top
            _require(valid, name, pair, f"two positive numbers, the smaller first{', up to 1' if top == 1 else ''}")
        _require(0 <= self.hue <= 0.5, "hue", self.hue, "turns between 0 and 0.5")
        _require(self.interpolation in INTERPOLATIONS, "interpolation", self.interpolation, " or ".join(INTERPOLATIONS))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A view recipe: two views of `size` pixels, and the normalisation (x - mean) / std per channel, x in [0, 1].

    It is hashable, so that it can be a static argument of jitted functions.
    """

    size: int
    view1: View
    view2: View
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        _require(isinstance(self.size, int) and self.size > 0, "size", self.size, "a positive number of pixels")
        _require(len(self.mean) == len(self.std), "mean", self.mean, f"{len(self.std)} numbers, as std has")
        _require(all(map(math.isfinite, self.mean)), "mean", self.mean, "finite numbers")
        good = all(math.isfinite(value) and value > 0 for value in self.std)
        _require(good, "std", self.std, "finite numbers above 0")


def imagenet(size: int = 224) -> Recipe:
    """The recipe of the paper, section 2.1, with the numbers of the reference main.py. The views differ in blur and
    solarization."""
    return Recipe(size, View(), View(blur=0.1, solarize=0.2))


def cifar(size: int = 32) -> Recipe:
    """The recipe of solo-learn, scripts/pretrain/cifar/augmentations/asymmetric.yaml: no blur."""
    return Recipe(size, View(blur=0.0), View(blur=0.0, solarize=0.2), CIFAR_MEAN, CIFAR_STD)


def lightly_cifar(size: int = 32) -> Recipe:
    """The recipe of lightly, cifar10_benchmark.py: BYOL's transform without blur, and torchvision's default, a bilinear
    crop."""
    view = View(blur=0.0, interpolation="bilinear")
    return Recipe(size, view, dataclasses.replace(view, solarize=0.2))


def grayscale(size: int = 28) -> Recipe:
    """A recipe for one channel: crop, flip, blur and solarization of the reference, without the colour operations."""
    view = View(jitter=0.0, grayscale=0.0)
    return Recipe(size, view, dataclasses.replace(view, blur=0.1, solarize=0.2), (0.5,), (0.5,))


RECIPES: dict[str, Callable[..., Recipe]] = {
    "imagenet": imagenet,
    "cifar": cifar,
    "lightly_cifar": lightly_cifar,
    "grayscale": grayscale,
}


def find(recipe: Recipe | str, size: int | None = None) -> Recipe:
    """The recipe, or that of RECIPES with this name, with views of `size` pixels if `size` is given.

    Raises:
      UserError: there is no recipe of that name, or `recipe` is neither a name nor a Recipe.
    """
    if isinstance(recipe, str):
        _require_known([recipe], list(RECIPES), "view recipe")
        recipe = RECIPES[recipe]()
    if not isinstance(recipe, Recipe):
        cause = f"The view recipe is a {type(recipe).__name__}, not a name or a Recipe"
        raise UserError(cause, f"Use {', '.join(map(repr, RECIPES))}, or make one: augment.Recipe(size, view1, view2).")
    return recipe if size is None else dataclasses.replace(recipe, size=size)


def recipe_from_config(config: Mapping[str, Any]) -> Recipe:
    """The view recipe of a section such as {"name": "imagenet", "size": 224, "view1": {"blur": 0.5}}.

    Args:
      config: the name of the recipe, and values that replace those of the recipe.

    Raises:
      UserError: a name, a key or a value is invalid.
    """
    _require_known(config, ["name", *(field.name for field in dataclasses.fields(Recipe))], "key of config.views")
    config = dict(config)
    name = config.pop("name", None)
    _require_known([name], list(RECIPES), "view recipe")
    size = config.pop("size", None)
    recipe = RECIPES[name]() if size is None else RECIPES[name](size)
    changes = {}
    for key, value in config.items():
        if key in ("view1", "view2"):
            _require_known(value, [field.name for field in dataclasses.fields(View)], f"key of config.views.{key}")
            changes[key] = dataclasses.replace(getattr(recipe, key), **{k: _as_tuple(v) for k, v in value.items()})
        else:
            changes[key] = _as_tuple(value)
    return dataclasses.replace(recipe, **changes)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else value


def _require(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise UserError(f"The view setting {name}={value!r} is invalid", f"Set it to {expected}.")


def _require_known(names: Iterable[object], valid: list[str], kind: str) -> None:
    for name in names:
        if name not in valid:
            close = difflib.get_close_matches(str(name), valid, n=3) or sorted(valid)
            raise UserError(f"Unknown {kind} {name!r}", f"Use {' or '.join(close)}.")
