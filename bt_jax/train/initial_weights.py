"""Initial weights of pretraining from a file or a run: `config.init_from`."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from bt_jax import messages, models
from bt_jax.messages import UserError
from bt_jax.models import Net, Tree
from bt_jax.state import Nets, TrainState
from bt_jax.weights import load


class InitialWeights(NamedTuple):
    """Initial weights of pretraining, {"params", "batch_stats"} of numpy arrays each; None: drawn by the seed."""

    backbone: dict[str, Any]
    projector: dict[str, Any] | None


def read(path: str, nets: Nets) -> InitialWeights:
    """Reads the weights of `config.init_from`, of the shapes that the networks have.

    A projector that is missing or has another shape is left out; a line says that a new one is drawn.

    Raises:
      UserError: they cannot be read, or are of another backbone.
    """
    model, backbone, projector = load.read(path, projector=True)
    wanted = jax.eval_shape(nets.backbone.init, jax.random.key(0))
    if _shapes(backbone) != _shapes(wanted):
        described = [f"{each.arch}, {_stem(each)}" for each in (models.build(**model["build"]), nets.backbone)]
        raise UserError(
            f"config.init_from={path} is a {described[0]}, not a {described[1]}",
            "Set --config.model.arch, --config.model.width and --config.model.small_images to its values,"
            " or take other initial weights.",
        )
    net = nets.heads.get("projector")
    if net is None:  # this method has none
        messages.say(f"initial weights: the encoder of {path}")
        return InitialWeights(backbone, None)
    fits = projector and _shapes(projector) == _shapes(jax.eval_shape(net.init, jax.random.key(0)))
    messages.say(f"initial weights: the encoder{' and the projector' if fits else ''} of {path}")
    if not fits:
        fault = "has another shape" if projector else "is missing"
        messages.say(f"initial weights: the projector of {path} {fault}, so a new one is drawn")
    return InitialWeights(backbone, projector if fits else None)


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _stem(net: Net) -> str:
    options = net.options
    stem = "3x3" if options["small_images"] else "7x7"
    return f"{stem} stem, width {options['width']:g}, {options['channels']} channels"


def initialise(
    initial: InitialWeights, state: TrainState, init_memory: Callable[[dict[str, Tree]], Tree] | None = None
) -> TrainState:
    """A new state with the initial weights in place of the drawn ones, and the same shardings.

    Args:
      init_memory: init_memory(params) -> the memory at step 0, in which momentum networks are copies of the params;
        None: the method has no memory.
    """
    trees = {"backbone": initial.backbone} | ({"projector": initial.projector} if initial.projector else {})

    def put(new, old):
        return jax.tree.map(lambda a, b: jax.device_put(a, b.sharding), new, old)

    params = {name: put(tree["params"], state.params[name]) for name, tree in trees.items()}
    stats = {name: put(tree["batch_stats"], state.batch_stats[name]) for name, tree in trees.items()}
    params, stats = state.params | params, state.batch_stats | stats
    memory = init_memory(params) if init_memory else state.memory
    return dataclasses.replace(state, params=params, batch_stats=stats, memory=memory)
