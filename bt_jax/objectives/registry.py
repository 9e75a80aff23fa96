"""The methods by their names in `config.objective.name`.

A config file can add a method of another package to METHODS.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from bt_jax.config import arguments
from bt_jax.messages import UserError
from bt_jax.objectives import (
    align_uniform,
    barlow_twins,
    byol,
    direct_pred,
    drlim,
    infonce,
    moco,
    simclr,
    simsiam,
    supervised,
    vicreg,
)
from bt_jax.objectives.base import Objective


class Method(NamedTuple):
    """The class of a method, and the pure function of its networks' outputs that its loss calls."""

    objective: type[Objective]
    function: Callable[..., tuple[jax.Array, Mapping[str, jax.Array]]]


METHODS: dict[str, Method] = {
    "align_uniform": Method(align_uniform.AlignUniform, align_uniform.align_uniform),
    "barlow_twins": Method(barlow_twins.BarlowTwins, barlow_twins.barlow_twins),
    "byol": Method(byol.BYOL, byol.byol),
    "direct_pred": Method(direct_pred.DirectPred, direct_pred.direct_pred),
    "drlim": Method(drlim.DrLIM, drlim.drlim),
    "infonce": Method(infonce.InfoNCE, infonce.infonce),
    "moco": Method(moco.MoCo, moco.moco),
    "simclr": Method(simclr.SimCLR, simclr.simclr),
    "simsiam": Method(simsiam.SimSiam, simsiam.simsiam),
    "supervised": Method(supervised.Supervised, supervised.supervised),
    "vicreg": Method(vicreg.VICReg, vicreg.vicreg),
}
NAMES = tuple(METHODS)
SET_BY_TRAINER = ("mesh", "classes")  # fields that are no keys of a config


def keys(name: str, *, option: str = "config.objective.name") -> dict[str, Any]:
    """The keys of a method in `config.objective`, with their defaults.

    Args:
      option: the key or argument that gave the name; for the message.

    Raises:
      UserError: there is no method of that name.
    """
    method = METHODS[arguments.choose(option, name, METHODS)].objective
    return {field.name: field.default for field in dataclasses.fields(method) if field.name not in SET_BY_TRAINER}


def method_of_run(config: Mapping[str, Any]) -> type[Objective]:
    """The method of a stored config.json; `Objective` itself if METHODS does not have it.

    Runs of release 0.1.0 name no method: they are Barlow Twins.
    """
    section = config.get("objective", {"name": "barlow_twins"})
    name = section.get("name") if isinstance(section, dict) else None
    return METHODS[name].objective if name in METHODS else Objective


def build(section: Mapping[str, Any], mesh: Mesh | None = None, classes: int = 0) -> Objective:
    """Builds the method of a section `config.objective`.

    Args:
      mesh: the devices, for methods with a field `mesh`.
      classes: number of classes of the data set, for methods with a field `classes`.

    Raises:
      UserError: there is no method of that name, or the config sets keys that it does not have.
    """
    options = dict(section)
    name = options.pop("name")
    known = keys(name)
    if unknown := sorted(options.keys() - known.keys()):
        raise UserError(
            f"config.objective has {', '.join(unknown)}, which {name} does not use",
            f"Use only name{''.join(f', {key}' for key in known)}. Set the whole section, as in docs/methods.md.",
        )
    method = METHODS[name].objective
    from_trainer = {"mesh": mesh, "classes": classes}
    fields = {field.name for field in dataclasses.fields(method)}
    return method(**options, **{name: value for name, value in from_trainer.items() if name in fields})


def evaluate_loss(
    name: str, inputs: Mapping[str, jax.Array], **options: Any
) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """The loss of a method for outputs of its networks, differentiable by every array.

    Args:
      name: a key of METHODS.
      inputs: arrays by the names of the function's arguments, such as {"z1": ..., "z2": ...}; see `bt_jax.losses`.
      options: the function's other arguments, which are keys of `config.objective`, such as lambd.

    Returns:
      The loss and its metrics.

    Raises:
      UserError: there is no method of that name, an input is missing or unknown, or an option is unknown.
    """
    function = METHODS[arguments.choose("name", name, METHODS)].function
    parameters = inspect.signature(function).parameters.values()
    arrays = {each.name: each.default is each.empty for each in parameters if each.kind != each.KEYWORD_ONLY}
    known = [each.name for each in parameters if each.kind == each.KEYWORD_ONLY]
    needed = [array for array, is_needed in arrays.items() if is_needed]
    if not set(needed) <= inputs.keys() <= arrays.keys():
        raise UserError(
            f"The loss of {name} takes the arrays {', '.join(arrays)}, not {', '.join(inputs) or 'none'}",
            f"Pass all of them; help(bt_jax.losses.{name}) describes them.",
        )
    if unknown := sorted(options.keys() - known):
        raise UserError(
            f"The loss of {name} has no option {', '.join(unknown)}",
            f"Use only {', '.join(known)}." if known else "It has no options.",
        )
    return function(**inputs, **options)
