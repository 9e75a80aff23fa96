"""Builds the parts of training from the sections of a config: views, networks, initial state, step."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bt_jax import compilers, models, sharding
from bt_jax.augment import recipes
from bt_jax.config.pretraining import Model, Pretrain, Views
from bt_jax.messages import UserError
from bt_jax.models import Tree, Variables
from bt_jax.objectives import registry
from bt_jax.objectives.base import RESERVED, Objective
from bt_jax.state import Nets, TrainState
from bt_jax.train import optimizer
from bt_jax.train import step as train_step
from bt_jax.train.epochs import Plan

ROWS = 1024  # the rows of a memory of all images are a multiple of this, so that a run can resume on other devices


def build_recipe(views: Views) -> recipes.Recipe:
    """The recipe of the two views, from the section `config.views`."""
    changed = {
        name: {key: value for key, value in view.items() if value is not None}
        for name, view in (("view1", views.view1), ("view2", views.view2))
    }
    changed |= {name: value for name, value in (("mean", views.mean), ("std", views.std)) if value is not None}
    recipe = recipes.recipe_from_config({"name": views.name, "size": views.size, **changed})
    if len(recipe.mean) not in (1, 3):
        raise UserError(
            f"config.views.mean has {len(recipe.mean)} numbers, but images are decoded to 1 or 3 channels",
            "Give 1 or 3 numbers to --config.views.mean and to --config.views.std.",
        )
    return recipe


def evaluation_recipe(views: Views, size: int) -> recipes.Recipe:
    """The recipe at the image size of evaluations; 0: at the size of the recipe."""
    recipe = build_recipe(views)
    return dataclasses.replace(recipe, size=size or recipe.size)


def backbone_options(model: Model, channels: int) -> dict[str, Any]:
    """Arguments of `models.build`, as plain JSON types."""
    return {
        "arch": model.arch,
        "small_images": model.small_images,
        "width": model.width,
        "channels": channels,
        "stem_padding": model.stem_padding,
    }


def build_nets(model: Model, channels: int, objective: Objective) -> Nets:
    """The backbone of the section `config.model` and the heads of the method."""
    dtype = jnp.dtype(model.dtype)
    backbone = models.build(
        **backbone_options(model, channels), zero_init_residual=model.zero_init_residual, dtype=dtype
    )
    heads = objective.heads(model, backbone.feature_dim)
    if taken := heads.keys() & set(RESERVED):
        raise ValueError(f"A head cannot be called {', '.join(sorted(taken))}: the state has other parts of that name")
    if absent := {*objective.unit_rows, *objective.frozen_epochs, *objective.constant_rate} - heads.keys():
        raise ValueError(f"The method has rules for {', '.join(sorted(absent))}, but no such heads")
    if model.projector_sharding == "sharded" and "projector" not in heads:
        raise UserError(
            f"{objective.title or type(objective).__name__} has no projector to shard",
            "Set --config.model.projector_sharding=replicated.",
        )
    return Nets(backbone, heads)


def initial_state(
    key: jax.Array,
    nets: Nets,
    tx: optax.GradientTransformation,
    objective: Objective,
    *,
    probe_classes: int = 0,
    images: int = 0,
    encoder: Variables | None = None,
    trained: optimizer.Parts | None = None,
) -> TrainState:
    """The state at step 0, a function of the key and of the encoder, if one is given.

    Args:
      tx: the optimizer of the trained params.
      objective: the method, which makes the memory.
      probe_classes: the classes of the online probe; 0: there is no probe.
      images: see `Objective.init_memory`.
      encoder: the variables of the backbone; None: they are drawn.
      trained: see `train.step.make_update`.
    """
    networks = {"backbone": nets.backbone, **nets.heads}
    *keys, probe_key = jax.random.split(key, len(networks) + 1)
    variables = {
        name: encoder if name == "backbone" and encoder else net.init(own)
        for (name, net), own in zip(networks.items(), keys, strict=True)
    }
    params = {name: each["params"] for name, each in variables.items()}
    for name in objective.unit_rows:
        params[name] = jax.tree.map(lambda p: optimizer.unit_columns(p) if p.ndim == 2 else p, params[name])
    memory = initial_memory(key, params, objective, images)
    if probe_classes:
        # N(0, 0.01), the reference's linear head (evaluate.py)
        kernel = 0.01 * jax.random.normal(probe_key, (nets.backbone.feature_dim, probe_classes))
        params["probe"] = {"kernel": kernel, "bias": jnp.zeros(probe_classes)}
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        params=params,
        batch_stats={name: each["batch_stats"] for name, each in variables.items()},
        opt_state=tx.init(optimizer.select(params, trained)),
        bad_steps=jnp.zeros([], jnp.int32),
        memory=memory,
    )


def initial_memory(key: jax.Array, params: dict[str, Tree], objective: Objective, images: int) -> Tree:
    """The memory at step 0. Its arrays are copies: a step donates its input, and no array can be donated twice."""
    return jax.tree.map(jnp.copy, objective.init_memory(jax.random.fold_in(key, 0), params, images))


class Training(NamedTuple):
    """The networks of a run and its step.

    Attributes:
      objective: the method.
      nets: its networks.
      step: step(state, batch) -> (state, metrics), not yet jitted.
      layout: the shardings of the state's arrays, in its structure.
      create: create(key) -> the state at step 0, jitted, with these shardings.
      update: the step without its views: update(state, views, batch) -> (state, metrics).
      init_memory: init_memory(key, params) -> the memory at step 0 for params that the key did not draw, such as
        initial weights from a file; jitted, with these shardings. None for a method without memory.
    """

    objective: Objective
    nets: Nets
    step: Callable
    layout: TrainState
    create: Callable[[jax.Array], TrainState]
    update: Callable
    init_memory: Callable[[jax.Array, dict[str, Tree]], Tree] | None = None

    def like(self, key: jax.Array) -> TrainState:
        """Shapes, dtypes and shardings of `create(key)`, as jax.ShapeDtypeStruct, without its compilation."""
        return sharding.abstract(jax.eval_shape(self.create, key), self.layout)


def build_training(
    settings: Pretrain,
    plan: Plan,
    recipe: recipes.Recipe,
    num_classes: int,
    mesh: Mesh,
    *,
    images: int = 0,
    first_id: int = 0,
) -> Training:
    """Builds the networks and the step of a run.

    Args:
      images: number of training images; a method's memory of all images has a row for each.
      first_id: the id of the first training image.
    """
    objective = registry.build(settings.objective, mesh, num_classes)
    objective.check_batch(settings.batch_size)
    nets = build_nets(settings.model, len(recipe.mean), objective)
    tx, rates = optimizer.build_optimizer(settings.optim, settings.probe, settings.batch_size, plan, objective)
    rows = -(-images // ROWS) * ROWS
    update = train_step.make_update(
        objective,
        nets,
        tx,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        first_id=first_id,
        seed=settings.seed,
        rates=rates,
        mesh=mesh,
        projector=settings.model.projector_sharding,
    )

    def create(key):
        # The state has a probe even without labels, so that every state of pretraining has the same structure.
        return initial_state(key, nets, tx, objective, probe_classes=max(num_classes, 1), images=rows)

    def init_memory(key, params):
        return initial_memory(key, params, objective, rows)

    layout = sharding.state_sharding(
        jax.eval_shape(create, jax.random.key(0)), mesh, settings.model.projector_sharding, rows
    )
    step = train_step.make_step(update, recipe, seed=settings.seed)
    return Training(
        objective,
        nets,
        step,
        layout,
        create=compilers.jit(create, runs_once=True, out_shardings=layout),
        update=update,
        init_memory=compilers.jit(init_memory, runs_once=True, out_shardings=layout.memory) if layout.memory else None,
    )
