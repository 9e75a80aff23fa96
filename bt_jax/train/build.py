"""From a config to what is trained: views, networks, the state at the start, the step."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import compilers, models, sharding
from bt_jax.augment import recipes
from bt_jax.messages import UserError
from bt_jax.state import Nets, TrainState
from bt_jax.train import optimizer
from bt_jax.train import step as train_step
from bt_jax.train.epochs import Plan


def build_recipe(config: ConfigDict) -> recipes.Recipe:
    """The two views of the config."""
    changed = {
        view: {name: value for name, value in config.views[view].items() if value is not None}
        for view in ("view1", "view2")
    }
    changed |= {name: config.views[name] for name in ("mean", "std") if config.views[name] is not None}
    recipe = recipes.recipe_from_config({"name": config.views.name, "size": config.views.size, **changed})
    if len(recipe.mean) not in (1, 3):
        raise UserError(
            f"config.views.mean has {len(recipe.mean)} numbers, but images are decoded to 1 or 3 channels",
            "Give as many of --config.views.mean and --config.views.std.",
        )
    return recipe


def evaluation_recipe(config: ConfigDict) -> recipes.Recipe:
    """The recipe at the size that is evaluated."""
    recipe = build_recipe(config)
    return dataclasses.replace(recipe, size=config.evals.size or recipe.size)


def backbone_options(config: ConfigDict, channels: int) -> dict[str, Any]:
    """Arguments of `models.build`, as plain JSON types."""
    return {
        "arch": config.model.arch,
        "small_images": config.model.small_images,
        "width": config.model.width,
        "channels": channels,
        "stem_padding": config.model.stem_padding,
    }


def build_nets(config: ConfigDict, channels: int) -> Nets:
    """Backbone and projector of the config."""
    dtype = jnp.dtype(config.model.dtype)
    backbone = models.build(
        **backbone_options(config, channels), zero_init_residual=config.model.zero_init_residual, dtype=dtype
    )
    projector = models.build_projector(
        backbone.feature_dim, tuple(config.model.projector), bias=config.model.projector_bias, dtype=dtype
    )
    return Nets(backbone, projector)


def initial_state(key: jax.Array, nets: Nets, tx: optax.GradientTransformation, num_classes: int) -> TrainState:
    """The state at step 0, a function of the key alone.

    The probe is there also without labels (then with one class), so that every state has the same structure.
    """
    backbone_key, projector_key, probe_key = jax.random.split(key, 3)
    backbone, projector = nets.backbone.init(backbone_key), nets.projector.init(projector_key)
    classes = max(num_classes, 1)
    params = {
        "backbone": backbone["params"],
        "projector": projector["params"],
        # N(0, 0.01), the reference's linear head (evaluate.py)
        "probe": {
            "kernel": 0.01 * jax.random.normal(probe_key, (nets.backbone.feature_dim, classes)),
            "bias": jnp.zeros(classes),
        },
    }
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        params=params,
        batch_stats={"backbone": backbone["batch_stats"], "projector": projector["batch_stats"]},
        opt_state=tx.init(params),
        bad_steps=jnp.zeros([], jnp.int32),
    )


class Training(NamedTuple):
    """What is trained, and how.

    Attributes:
      nets: backbone and projector.
      step: step(state, batch) -> (state, metrics), not yet jitted.
      layout: where the state's arrays lie, shardings in its structure.
      create: create(key) -> the state at step 0, jitted, laid out so.
      update: the step without its views: update(state, views, labels) -> (state, metrics).
    """

    nets: Nets
    step: Callable
    layout: TrainState
    create: Callable[[jax.Array], TrainState]
    update: Callable


def build_training(config: ConfigDict, plan: Plan, recipe: recipes.Recipe, num_classes: int, mesh: Mesh) -> Training:
    """Everything between a batch of images and the next state."""
    nets = build_nets(config, channels=len(recipe.mean))
    tx, rates = optimizer.build_optimizer(config, plan)
    update = train_step.make_update(
        nets,
        tx,
        lambd=config.loss.lambd,
        form=config.loss.form,
        two_passes=config.model.two_passes,
        rates=rates,
        mesh=mesh,
        head=config.model.head,
    )

    def create(key):
        return initial_state(key, nets, tx, num_classes)

    layout = sharding.state_sharding(jax.eval_shape(create, jax.random.key(0)), mesh, config.model.head)
    step = train_step.make_pretrain_step(update, recipe, seed=config.seed)
    return Training(nets, step, layout, compilers.jit(create, out_shardings=layout), update)
