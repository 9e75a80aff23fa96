"""A linear classifier on an encoder, trained by gradient descent: linear evaluation, few labels, fine-tuning, transfer.

The protocols differ in numbers alone, which are in `configs/`: what is trained, the rates, the schedule, the images.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from bt_jax import augment, compilers, messages, optim, randomness, sharding
from bt_jax.augment import recipes
from bt_jax.config import arguments
from bt_jax.data.sources import selection
from bt_jax.data.sources.base import Source
from bt_jax.evals import accuracy, confidence, pictures
from bt_jax.evals.accuracy import Accuracy
from bt_jax.messages import UserError
from bt_jax.objectives import functions
from bt_jax.report import write
from bt_jax.run_folder import lock
from bt_jax.state import TrainState
from bt_jax.tasks import from_encoder, open_run
from bt_jax.tasks.from_encoder import Encoder
from bt_jax.train import epochs, loop, optimizer


class Run(NamedTuple):
    """What is trained, and what judges it."""

    loop: loop.Loop
    accuracy: "Accuracy"
    class_names: list[str]
    fresh: Callable[[], TrainState]


@lock.releasing
def run(config: ConfigDict, workdir: str, *, started: float | None = None) -> Path:
    """Trains to the end of the schedule, or goes on from the newest checkpoint in `workdir`.

    Args:
      config: of `bt_jax.config.finetune`, overridden.

    Returns:
      The run folder; its summary.json has "top1", "top5" and "top1_interval" on held-out images, fractions.

    Raises:
      UserError: anything the user can mend.
    """
    this = _prepare(from_encoder.complete(config), workdir, time.monotonic() if started is None else started)
    state = loop.train(this.loop, loop.resume_or(this.loop, this.fresh()))
    if int(state.step) == this.loop.plan.total_steps and not write.concluded(this.loop.folder, int(state.step)):
        _finish(this, state)
    this.loop.checkpoints.close()
    return this.loop.folder


def _prepare(config: ConfigDict, workdir: str, started: float) -> Run:
    mesh = open_run.open_machine(config)
    encoder = from_encoder.open_encoder(config, dtype=config.model.dtype)
    data = open_run.open_data(config, mesh, len(encoder.mean), partial(_labelled_share, config))
    source, feed = data.source, data.feed
    recipe = from_encoder.view_recipe(
        config, encoder, crop_scale=tuple(config.views.crop_scale), flip=config.views.flip
    )
    plan = open_run.open_schedule(config, data)
    trained = trained_parts(config.train, list(encoder.variables["params"]))
    tx, rates = _optimizer(config, plan, trained)
    batch_norm = config.batch_norm if config.batch_norm != "auto" else "train" if config.train == "all" else "eval"
    step = make_step(encoder, tx, recipe, trained=trained, train=batch_norm == "train", rates=rates, seed=config.seed)
    every_steps = plan.steps(config.evals.every_epochs) or plan.total_steps
    val = feed.passes(config.data.val_split, config.evals.val_images)
    accuracy = Accuracy(encoder.net, recipe, val, mesh=mesh, resize=config.evals.resize, every_steps=every_steps)
    about = f"{config.encoder} on {source.name}, {feed.images} images, training {', '.join(trained)}"
    folder = open_run.open_folder(config, workdir, data, about)
    model = {"build": {"arch": encoder.net.arch} | encoder.net.options, "mean": encoder.mean, "std": encoder.std}
    checkpoints = open_run.open_checkpoints(config, folder, plan, model)
    this = loop.Loop(config, folder, plan, step, feed, [accuracy], checkpoints, started, unit="images")

    def fresh():
        def state(key, variables):
            return create(key, encoder._replace(variables=variables), tx, source.num_classes)

        key = randomness.stream(config.seed, randomness.INIT)
        return compilers.jit(state, out_shardings=sharding.replicated(mesh))(key, encoder.variables)

    return Run(this, accuracy, list(source.class_names), fresh)


def _labelled_share(config: ConfigDict, source: Source) -> tuple[Source, str]:
    """The share of the training images that the config asks for, and its split."""
    for split in (config.data.train_split, config.data.val_split):
        if not split or not source.labelled(source.span(split).base):
            raise UserError(
                f"{source.name} has no labels in split {split!r}",
                "A classifier needs them in train and held-out split.",
            )
    if config.data.fraction == 1:
        return source, config.data.train_split
    return selection.share(source, config.data.train_split, config.data.fraction, seed=config.seed), "share"


def trained_parts(train: str, parts: list[str]) -> tuple[str, ...]:
    """What "head", "all" or "layer4,layer3" means: "head", and names among the backbone's `parts`."""
    if train in ("head", "all"):
        return ("head", *parts) if train == "all" else ("head",)
    return (
        "head",
        *(arguments.choose("config.train", name.strip(), ("head", "all", *parts)) for name in train.split(",")),
    )


def create(key: jax.Array, encoder: Encoder, tx: optax.GradientTransformation, num_classes: int) -> TrainState:
    """The state at step 0: the encoder as it is, and a new head, by the reference's evaluate.py N(0, 0.01) and zero."""
    kernel = 0.01 * jax.random.normal(key, (encoder.net.feature_dim, num_classes))
    backbone, stats = encoder.variables["params"], encoder.variables["batch_stats"]
    params = {"backbone": backbone, "head": {"kernel": kernel, "bias": jnp.zeros(num_classes)}}
    zero = jnp.zeros([], jnp.int32)
    return TrainState(zero, params, {"backbone": stats}, tx.init(params), zero)


def _label(trained: tuple[str, ...]) -> Callable:
    """A function params -> "head", "backbone" or "frozen" for every array."""

    def label(path, leaf):
        del leaf
        top, *rest = (entry.key for entry in path)
        return "head" if top == "head" else "backbone" if rest[0] in trained else "frozen"

    return lambda params: jax.tree_util.tree_map_with_path(label, params)


def _optimizer(config: ConfigDict, plan: epochs.Plan, trained: tuple[str, ...]):
    options = config.optim
    if options.schedule == "cosine":
        shape = {"steps_per_epoch": plan.steps_per_epoch, "epochs": config.total_epochs + config.extend_epochs}
        rates = {name: optim.cosine_by_epoch(options[f"lr_{name}"], **shape) for name in ("head", "backbone")}
    else:
        drops = {plan.steps(epoch): options.drop_factor for epoch in options.drop_epochs}
        rates = {
            name: optax.piecewise_constant_schedule(options[f"lr_{name}"], dict(drops)) for name in ("head", "backbone")
        }

    sgd = {"weight_decay": options.weight_decay, "momentum": options.momentum, "nesterov": options.nesterov}
    parts = {name: optim.sgd(rate, rate, **sgd) for name, rate in rates.items()} | {"frozen": optax.set_to_zero()}
    shown = {f"lr_{name}": rate for name, rate in rates.items() if name == "head" or len(trained) > 1}
    return optax.multi_transform(parts, _label(trained)), shown


def make_step(
    encoder: Encoder,
    tx: optax.GradientTransformation,
    recipe: recipes.Recipe,
    *,
    trained: tuple[str, ...],
    train: bool,
    rates: dict[str, optax.Schedule],
    seed: int,
) -> Callable:
    """Builds step(state, batch) -> (state, metrics), as `train.step.make_pretrain_step` with one view and labels.

    Args:
      trained: of `trained_parts`; every other array leaves a step bit-equal.
      train: batch norm by the batch's statistics, else by the running ones, which then stay as they are.
    """
    views_key, label = randomness.stream(seed, randomness.VIEWS), _label(trained)

    def loss_fn(params, batch_stats, images, labels):
        # The compiler then leaves out the backward pass below the lowest trained part.
        params = jax.tree.map(
            lambda kind, p: jax.lax.stop_gradient(p) if kind == "frozen" else p, label(params), params
        )
        variables = {"params": params["backbone"], "batch_stats": batch_stats["backbone"]}
        h = encoder.net.apply(variables, images, train=train)
        h, stats = h if train else (h, batch_stats["backbone"])
        logits = h @ params["head"]["kernel"] + params["head"]["bias"]
        loss = functions.cross_entropy(logits, labels)
        return loss, ({"loss": loss, "top1": functions.top1(logits, labels)}, {"backbone": stats})

    def step(state: TrainState, batch):
        key = jax.random.fold_in(views_key, state.step)
        # The second view is not used, so not computed either.
        images, _ = augment.two_views(key, batch["image"], recipe, ids=batch["id"], sizes=batch.get("size"))
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (shown, stats)), grads = gradient(state.params, state.batch_stats, images, batch["label"])
        new, norm, _ = optimizer.apply_gradient(state, tx, grads, stats, loss)
        kinds = label(state.params)
        params = jax.tree.map(lambda kind, a, b: b if kind == "frozen" else a, kinds, new.params, state.params)
        new = TrainState(new.step, params, new.batch_stats, new.opt_state, new.bad_steps)
        shown |= {"grad_norm": norm, "bad_steps": new.bad_steps}
        shown |= {name: rate(state.step) for name, rate in rates.items()}
        return new, {f"train/{name}": jnp.asarray(value, jnp.float32) for name, value in shown.items()}

    return step


def _finish(this: Run, state: TrainState) -> None:
    logits, labels = this.accuracy.logits(state)
    values = accuracy.accuracies(logits, labels)
    predicted = logits.argmax(axis=1)
    low, high = confidence.interval((predicted == labels)[labels >= 0])
    summary: dict[str, Any] = {"steps": int(state.step), **values, "top1_interval": [low, high]}
    summary |= {"train_images": this.loop.feed.images, "seconds": round(time.monotonic() - this.loop.started, 1)}
    messages.say(f"held-out top-1 {100 * values['top1']:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f})")
    shown = pictures.confusion(labels, predicted, logits.shape[1])
    write.conclude(this.loop.folder, summary, shown | {"class_names": np.array(this.class_names, str)})
