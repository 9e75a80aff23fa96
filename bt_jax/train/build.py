"""From a config to the objects of a run: devices, steps, views, networks, optimizer."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import compilers, messages, models, optim, sharding
from bt_jax import state as state_lib
from bt_jax.augment import recipes
from bt_jax.messages import UserError
from bt_jax.state import Nets, TrainState
from bt_jax.train import step as train_step


class Plan(NamedTuple):
    """Epochs as steps."""

    steps_per_epoch: int
    total_steps: int

    def steps(self, epochs: float) -> int:
        """At least one step for any positive number of epochs."""
        return max(round(epochs * self.steps_per_epoch), 1) if epochs > 0 else 0


def make_plan(config: ConfigDict, images: int) -> Plan:
    """Raises UserError where the data set is smaller than one batch."""
    steps_per_epoch = images // config.batch_size
    if not steps_per_epoch:
        raise UserError(
            f"{images} images in {config.data.train_split!r} do not fill one batch of {config.batch_size}",
            "Set a smaller --config.batch_size.",
        )
    return Plan(steps_per_epoch, max(round((config.total_epochs + config.extend_epochs) * steps_per_epoch), 1))


def check_rate(config: ConfigDict) -> None:
    """Says so where the batch was changed and the learning rates, which the config file chose for another, were not."""
    if config.tuned_batch_size not in (0, config.batch_size):
        messages.say(
            f"WARNING: the learning rates are tuned for a batch of {config.tuned_batch_size}, not {config.batch_size}:"
            f" write --config=FILE.py:batch={config.batch_size} to take the config's rate for it"
        )


def check_devices(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses the wrong kind or number of devices; says so where an accelerator of this machine is not used."""
    platform = jax.default_backend()
    extra = "cuda" if config.platform == "gpu" else config.platform
    if config.platform not in ("any", platform):
        raise UserError(
            f"config.platform={config.platform!r}, but JAX runs on {platform!r}",
            "Set JAX_PLATFORMS=cpu."
            if config.platform == "cpu"
            else f"Install JAX for it (pip install -e '.[{extra}]'), check that no"
            " other process holds the device (lsof /dev/accel* /dev/nvidia*) and that JAX_PLATFORMS is unset, or set"
            " --config.platform=any.",
        )
    if config.devices and config.devices != mesh.devices.size:
        raise UserError(
            f"config.devices={config.devices}, but there are {mesh.devices.size}",
            f"Set --config.devices={mesh.devices.size}, or make the missing devices visible.",
        )
    unused = [path for path in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0") if os.path.exists(path)]
    if platform == "cpu" and unused and not os.environ.get("JAX_PLATFORMS"):
        messages.say(
            f"WARNING: {unused[0]} is an accelerator, but JAX runs on the CPU; set --config.platform to insist on it"
        )


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


def build_optimizer(config: ConfigDict, plan: Plan) -> tuple[optax.GradientTransformation, dict[str, optax.Schedule]]:
    """The optimizer of the whole params, and the two rates that the log shows."""
    options, scale = config.optim, config.batch_size / 256
    shape = {
        "warmup_steps": plan.steps(options.warmup_epochs),
        "total_steps": plan.total_steps,
        "end_factor": options.end_factor,
        "start_factor": options.start_factor,
    }
    weights = optim.warmup_cosine(options.lr_weights * scale, **shape)
    biases = optim.warmup_cosine(options.lr_biases * scale, **shape)
    if options.name == "lars":
        ssl = optim.lars(
            weights,
            biases,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            trust_coefficient=options.trust_coefficient,
            clip=options.clip,
        )
    elif options.name == "sgd":
        ssl = optim.sgd(weights, biases, weight_decay=options.weight_decay, momentum=options.momentum)
    else:
        ssl = optim.adamw(weights, biases, weight_decay=options.weight_decay)
    probe_rate = optim.warmup_cosine(
        config.probe.lr * scale, warmup_steps=0, total_steps=plan.total_steps, end_factor=0
    )
    probe = optim.sgd(probe_rate, probe_rate, weight_decay=config.probe.weight_decay, momentum=config.probe.momentum)
    tx = train_step.make_optimizer(ssl, probe, grad_scale=options.grad_scale)
    return tx, {"lr_weights": weights, "lr_biases": biases}


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
    tx, rates = build_optimizer(config, plan)
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
        return state_lib.create(key, nets, tx, num_classes)

    layout = sharding.state_sharding(jax.eval_shape(create, jax.random.key(0)), mesh, config.model.head)
    step = train_step.make_pretrain_step(update, recipe, seed=config.seed)
    return Training(nets, step, layout, compilers.jit(create, out_shardings=layout), update)
