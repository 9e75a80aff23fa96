"""Builds the training step. It makes two views of a batch of uint8 images, and its update computes the next state.

Step and update are pure functions and not yet jitted.

Every random key is derived from (seed, step, sample id). So no random state is stored, and the number of devices does
not change the result.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bt_jax import augment, randomness, sharding
from bt_jax.augment import recipes
from bt_jax.models import Tree
from bt_jax.models.split_projector import SplitProjector
from bt_jax.objectives import functions
from bt_jax.objectives.base import Context, Objective, Outcome, memory_after_step
from bt_jax.objectives.forward import Forward
from bt_jax.state import Nets, TrainState
from bt_jax.train import optimizer

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]  # float32 scalars
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Update = Callable[[TrainState, Sequence[jax.Array], Batch], tuple[TrainState, Metrics]]


def make_step(update: Update, recipe: recipes.Recipe, *, seed: int) -> Step:
    """Builds the step. It makes the views and passes them to `update`, which `make_update` has built.

    Returns:
      step(state, batch) -> (state, metrics). batch: "image" uint8 (n, h, w, c), "id" int32 (n,), and optionally "label"
      int32 (n,) and "size" int32 (n, 2) for images in a padded canvas.
    """
    views_key = randomness.stream(seed, randomness.VIEWS)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(views_key, state.step)
        views = augment.two_views(key, batch["image"], recipe, ids=batch["id"], sizes=batch.get("size"))
        return update(state, views, batch)

    return step


def make_update(
    objective: Objective,
    nets: Nets,
    tx: optax.GradientTransformation,
    *,
    total_steps: int = 1,
    steps_per_epoch: int = 1,
    first_id: int = 0,
    seed: int = 0,
    rates: dict[str, optax.Schedule] | None = None,
    mesh: Mesh | None = None,
    projector: str = "replicated",
    trained: optimizer.Parts | None = None,
) -> Update:
    """Builds update(state, views, batch) -> (state, metrics).

    Args:
      tx: the optimizer of the trained params.
      total_steps, steps_per_epoch: the schedule, for methods that depend on it.
      first_id: the id of the first training image.
      seed: seed of the random numbers of the method.
      rates: {name: learning rate schedule}; the metrics contain their values.
      mesh: the devices that share the batch.
      projector: `config.model.projector_sharding`; "sharded" splits the projector over the mesh as well. The state then
        has the shardings of `sharding.state_sharding`.
      trained: {network: its trained parts}, the only ones with a gradient; None: all networks.

    Returns:
      The update. views: float arrays (n, h, w, c); batch: "id" and optionally "label", int32 (n,). metrics: float32
      scalars under the names of the log. If the loss, or a gradient other than the online probe's, is
      not finite, only the counters change.

    Raises:
      ValueError: a sharded projector without a mesh.
    """
    networks: dict[str, Any] = {"backbone": nets.backbone, **nets.heads}
    split = ("projector",) if projector == "sharded" else ()
    for name in split:
        if mesh is None:
            raise ValueError("A sharded projector needs a mesh to be split over")
        networks[name] = SplitProjector(networks[name], mesh)
    own_key = randomness.stream(seed, randomness.OBJECTIVE)

    def loss_fn(moving: dict[str, Tree], state: TrainState, views: Sequence[jax.Array], context: Context):
        params = optimizer.merge(state.params, moving, trained)
        run = Forward(networks, params, state.batch_stats, mesh=mesh, split=split)
        outcome = objective.loss(run, views, state.memory, context)
        total, metrics = outcome.loss, {"loss": outcome.loss, **outcome.metrics}
        if context.labels is not None and "probe" in params:
            probe_loss, probe_metrics = _probe(params["probe"], outcome, context.labels, mesh)
            total, metrics = total + probe_loss, metrics | probe_metrics  # no parameter is in both terms
        return total, (metrics, run.batch_stats, outcome.memory)

    def update(state: TrainState, views: Sequence[jax.Array], batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(own_key, state.step)
        context = Context(state.step, total_steps, steps_per_epoch, batch["id"] - first_id, batch.get("label"), key)
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (metrics, batch_stats, memory)), grads = gradient(
            optimizer.select(state.params, trained), state, views, context
        )
        new, norm, finite = optimizer.apply_gradient(state, tx, grads, batch_stats, metrics["loss"], trained)
        new = dataclasses.replace(new, memory=memory_after_step(state.memory, memory, finite))
        metrics |= {"grad_norm": norm, "bad_steps": new.bad_steps}
        metrics |= {name: rate(state.step) for name, rate in (rates or {}).items()}
        return new, {f"train/{name}": jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return update


def _probe(
    params: Mapping[str, jax.Array], outcome: Outcome, labels: jax.Array, mesh: Mesh | None
) -> tuple[jax.Array, Metrics]:
    """Loss and metrics of the online probe: a linear classifier on the detached features."""
    kernel = params["kernel"]
    if mesh is not None:  # gathers a sharded kernel, which is smaller than the features of all devices
        kernel = jax.lax.with_sharding_constraint(kernel, sharding.replicated(mesh))
    # The rows alternate between the views. In another order they would have to move between the devices.
    features = jnp.stack(outcome.features, axis=1).reshape(-1, kernel.shape[0])
    logits = jax.lax.stop_gradient(features) @ kernel + params["bias"]
    repeated = jnp.repeat(labels, len(outcome.features))
    loss = functions.cross_entropy(logits, repeated)
    return loss, {"probe_loss": loss, "probe_top1": functions.top1(logits, repeated)}
