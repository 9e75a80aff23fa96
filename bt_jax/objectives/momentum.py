"""The momentum network of MoCo, BYOL and DirectPred: a moving average of backbone and projector.

It is part of the memory of its method. The official codes move it before the forward pass (MoCo) or after the optimizer
(BYOL, DirectPred). Both give one sequence: the average that step k + 1 uses holds the parameters after step k.
"""

from collections.abc import Mapping, Sequence

import jax

from bt_jax.objectives.forward import Forward, Tree

PARTS = ("backbone", "projector")


def start(params: Mapping[str, Tree]) -> dict[str, Tree]:
    """The momentum network at step 0: a copy of the trained one."""
    return {name: params[name] for name in PARTS}


def follow(target: Mapping[str, Tree], params: Mapping[str, Tree], rate: float | jax.Array) -> dict[str, Tree]:
    """rate * target + (1 - rate) * params, without gradient."""
    online = jax.lax.stop_gradient({name: params[name] for name in PARTS})
    return jax.tree.map(lambda old, new: (rate * old + (1 - rate) * new).astype(old.dtype), dict(target), online)


def project(
    run: Forward, target: Mapping[str, Tree], views: Sequence[jax.Array], *, bn_groups: int = 1
) -> list[jax.Array]:
    """The momentum network's projections of the views, with batch statistics of these views."""
    h = run("backbone", views, weights=target["backbone"], bn_groups=bn_groups)
    return run("projector", h, weights=target["projector"])
