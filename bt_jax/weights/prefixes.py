"""Finds the ResNet in a file of weights: the prefix of its keys, and the library that named them.

Lightning puts "model." before the keys of a model, torch.compile "_orig_mod.", DistributedDataParallel "module.", and
MoCo "encoder_q." before those of its encoder. They combine.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bt_jax.messages import UserError
from bt_jax.weights import state_dicts
from bt_jax.weights.key_names import STEMS

# First parts of the names of modules that follow the features of a ResNet. Other modules may be part of the ResNet.
AFTER = re.compile(r"fc|head|classif|project|predict|prototype|mlp|linear|queue|logit|probe", re.IGNORECASE)
NONE = "resnet50"  # architecture that the error compares with if no part of a ResNet is present


class Backbone(NamedTuple):
    """A ResNet, or arrays that start like one.

    Attributes:
      prefix: the prefix of its keys.
      arrays: its arrays alone, under torchvision's keys.
      arch: its architecture; "" if it fits none.
    """

    prefix: str
    arrays: dict[str, Any]
    arch: str


def find(arrays: Mapping[str, Any], arch: str = "") -> tuple[Backbone, dict[str, Any]]:
    """Returns the only complete ResNet of the arrays, and the arrays beside it, with keys such as "projector.0.weight".

    Args:
      arch: the required architecture; "": any.

    Raises:
      UserError: there is no ResNet, or several. The message names the nearest architecture and the prefixes.
    """
    candidates = _backbones(arrays)
    complete = [backbone for backbone in candidates if backbone.arch and arch in ("", backbone.arch)]
    others = [backbone for backbone in complete[1:] if not _same(backbone.arrays, complete[0].arrays)]
    if others:
        raise UserError(
            f"It holds {len(others) + 1} networks, with the prefixes {_listed([complete[0], *others])}",
            "Save the state dict of one network alone.",
        )
    if not complete:
        raise _none(arrays, candidates, arch)
    return complete[0], _beside(arrays, complete[0].prefix)


def _backbones(arrays: Mapping[str, Any]) -> list[Backbone]:
    """All arrays that start like a ResNet, the shortest prefix first."""
    backbones = {}
    for key in arrays:
        for stem, rename in STEMS.items():
            prefix = key.removesuffix(stem)
            if prefix == key or (prefix and not prefix.endswith(".")):
                continue
            own = {rename(name): array for name, array in state_dicts.below(arrays, prefix).items()}
            if "bn1.weight" in own and "layer1.0.conv1.weight" in own:
                own = {name: array for name, array in own.items() if not AFTER.match(name)}
                backbones[prefix] = Backbone(prefix, own, state_dicts.fitting(own) or "")
    return sorted(backbones.values(), key=lambda backbone: len(backbone.prefix))


def _beside(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The arrays of the ResNet's module and of the module around it, which may have the projector."""
    parent = re.sub(r"[^.]+\.$", "", prefix)
    return state_dicts.below(arrays, prefix) | (state_dicts.below(arrays, parent) if parent != prefix else {})


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two networks are equal. Lightning saves a module twice if two attributes refer to it."""
    return a.keys() == b.keys() and all(np.array_equal(array, b[key]) for key, array in a.items())


def _none(arrays: Mapping[str, Any], candidates: list[Backbone], arch: str) -> UserError:
    """The error without a complete ResNet, which describes the candidate with the fewest differences."""
    if candidates:
        nearest = {each.prefix: arch or state_dicts.nearest(each.arrays) for each in candidates}
        best = min(candidates, key=lambda each: state_dicts.distance(each.arrays, nearest[each.prefix]))
        own, name = best.arrays, nearest[best.prefix]
        noun = "prefixes are" if len(candidates) > 1 else "prefix is"
        where = f"Its {noun} {_listed(candidates)}" if len(candidates) > 1 or best.prefix else ""
    else:
        own, name = dict(arrays), arch or NONE
        tops = sorted({f"{key.partition('.')[0]}." for key in arrays if "." in key})
        where = f"Its keys start with {state_dicts.some(tops)}" if tops else ""
    try:
        state_dicts.from_torch(own, arch=name)
    except UserError as error:
        return UserError(f"{error.cause}. {where}" if where else error.cause, error.fix)
    raise AssertionError(f"a {name} that does not fit")


def _listed(backbones: list[Backbone]) -> str:
    return " and ".join(repr(backbone.prefix) for backbone in backbones)
