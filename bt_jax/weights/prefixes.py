"""Where in a file of weights the ResNet lies: behind which prefix, and under which library's keys.

Lightning puts a model behind "model.", torch.compile behind "_orig_mod.", DistributedDataParallel behind "module.",
MoCo its encoder behind "encoder_q.", and they combine.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bt_jax.messages import UserError
from bt_jax.weights import state_dicts
from bt_jax.weights.key_names import STEMS

# Modules beside a ResNet that come after its features, by the first part of their names; others may be part of it.
AFTER = re.compile(r"fc|head|classif|project|predict|prototype|mlp|linear|queue|logit|probe", re.IGNORECASE)
NONE = "resnet50"  # what weights without the beginning of a ResNet are compared with in the error


class Backbone(NamedTuple):
    """A ResNet, or what begins like one.

    Attributes:
      prefix: what stands before its keys.
      arrays: it alone, under torchvision's keys.
      arch: that it is, or "" if it is none.
    """

    prefix: str
    arrays: dict[str, Any]
    arch: str


def find(arrays: Mapping[str, Any], arch: str = "") -> tuple[Backbone, dict[str, Any]]:
    """The one whole ResNet among the arrays, and whatever lies beside it, by keys such as "projector.0.weight".

    Args:
      arch: take it to be this one.

    Raises:
      UserError: there is none, or several; the error names the nearest architecture and the prefixes.
    """
    found = _backbones(arrays)
    whole = [each for each in found if each.arch and arch in ("", each.arch)]
    others = [each for each in whole[1:] if not _same(each.arrays, whole[0].arrays)]
    if others:
        raise UserError(
            f"It holds {len(others) + 1} networks, behind {_listed([whole[0], *others])}",
            "Save the state dict of the one that you want, alone.",
        )
    if not whole:
        raise _none(arrays, found, arch)
    return whole[0], _beside(arrays, whole[0].prefix)


def _backbones(arrays: Mapping[str, Any]) -> list[Backbone]:
    """Whatever begins like a ResNet, the shortest prefix first."""
    found = {}
    for key in arrays:
        for stem, rename in STEMS.items():
            prefix = key.removesuffix(stem)
            if prefix == key or (prefix and not prefix.endswith(".")):
                continue
            own = {rename(name): array for name, array in state_dicts.below(arrays, prefix).items()}
            if "bn1.weight" in own and "layer1.0.conv1.weight" in own:
                own = {name: array for name, array in own.items() if not AFTER.match(name)}
                found[prefix] = Backbone(prefix, own, state_dicts.fitting(own) or "")
    return sorted(found.values(), key=lambda each: len(each.prefix))


def _beside(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What lies in the module that has the ResNet, and in the ResNet's own: there is the projector."""
    parent = re.sub(r"[^.]+\.$", "", prefix)
    return state_dicts.below(arrays, prefix) | (state_dicts.below(arrays, parent) if parent != prefix else {})


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """One network under two names, as Lightning saves a module that two attributes hold."""
    return a.keys() == b.keys() and all(np.array_equal(array, b[key]) for key, array in a.items())


def _none(arrays: Mapping[str, Any], found: list[Backbone], arch: str) -> UserError:
    """The error for the one that lacks the least."""
    if found:
        nearest = {each.prefix: arch or state_dicts.nearest(each.arrays) for each in found}
        best = min(found, key=lambda each: state_dicts.distance(each.arrays, nearest[each.prefix]))
        own, name = best.arrays, nearest[best.prefix]
        where = f"Behind {_listed(found)}" if len(found) > 1 or best.prefix else ""
    else:
        own, name = dict(arrays), arch or NONE
        tops = sorted({f"{key.partition('.')[0]}." for key in arrays if "." in key})
        where = f"Its keys begin with {state_dicts.some(tops)}" if tops else ""
    try:
        state_dicts.from_torch(own, arch=name)
    except UserError as error:
        return UserError(f"{error.cause}. {where}" if where else error.cause, error.cure)
    raise AssertionError(f"a {name} that does not fit")


def _listed(found: list[Backbone]) -> str:
    return " and ".join(repr(each.prefix) for each in found)
