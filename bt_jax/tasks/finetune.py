"""A linear classifier on an encoder, trained by gradient descent: linear evaluation, few labels, fine-tuning, transfer.

The protocols differ only in the settings of their recipes in `bt_jax/configs/`: trained parts, rates, schedule, images.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import compilers, messages, optim, randomness, sharding
from bt_jax.augment import recipes
from bt_jax.config import arguments, keys
from bt_jax.config.encoder_tasks import Finetune, FinetuneOptim
from bt_jax.data.sources import selection
from bt_jax.data.sources.base import Source
from bt_jax.evals import accuracy, confidence, pictures
from bt_jax.evals.accuracy import Accuracy
from bt_jax.messages import UserError
from bt_jax.objectives import supervised
from bt_jax.report import write
from bt_jax.run_folder import lock
from bt_jax.state import Nets, TrainState
from bt_jax.tasks import from_encoder, held_out, open_run
from bt_jax.tasks.from_encoder import Encoder
from bt_jax.tasks.train_and_finish import train_and_finish
from bt_jax.train import build, epochs
from bt_jax.train import step as train_step
from bt_jax.train.run import TrainingRun


class Finetuning(NamedTuple):
    """A fine-tuning run, and what its final evaluation needs.

    Attributes:
      smoke: see `open_run.Data`.
    """

    training: TrainingRun
    accuracy: Accuracy
    class_names: list[str]
    smoke: str


@lock.releasing
def run(config: ConfigDict, workdir: str, *, started: float | None = None) -> Path:
    """Trains to the end of the schedule, from the newest checkpoint in `workdir` if there is one.

    Args:
      config: a config of `bt_jax.config.finetune`, with its overrides.

    Returns:
      The run folder; its summary.json has "top1", "top1_interval" and, for more than five classes, "top5" on
      held-out images, as fractions.

    Raises:
      UserError: anything the user can fix.
    """
    settings = keys.read(from_encoder.complete(config))
    prepared = _prepare(settings, workdir, time.monotonic() if started is None else started)
    from_encoder.say_size(config)
    return train_and_finish(prepared.training, partial(_finish, prepared))


def _prepare(settings: Finetune, workdir: str, started: float) -> Finetuning:
    mesh = open_run.open_machine(settings)
    encoder = from_encoder.open_encoder(settings, dtype=settings.model.dtype)
    data = open_run.open_data(settings, workdir, mesh, len(encoder.mean), partial(_labelled_share, settings))
    source, feed = data.source, data.feed
    recipe = from_encoder.view_recipe(
        settings.views, encoder, crop_scale=tuple(settings.views.crop_scale), flip=settings.views.flip
    )
    plan = open_run.open_schedule(settings, data)
    trained = trained_parts(settings.train, list(encoder.variables["params"]))
    built = build_training(settings, plan, encoder, recipe, source.num_classes, mesh, trained)
    every_steps = plan.steps(settings.evals.every_epochs) or plan.total_steps
    val = feed.passes(settings.data.val_split, settings.evals.val_images)
    accuracy = Accuracy(built.nets, recipe, val, mesh=mesh, resize=settings.evals.resize, every_steps=every_steps)
    parts = ", ".join(("classifier", *trained["backbone"]))
    about = (
        f"{settings.encoder} on {from_encoder.about_images(settings, source)}, {feed.images} images, training {parts}"
    )
    folder = open_run.open_folder(settings, workdir, data, recipe, about)
    model = {"build": {"arch": encoder.net.arch} | encoder.net.options, "mean": encoder.mean, "std": encoder.std}
    key = randomness.stream(settings.seed, randomness.INIT)
    training = TrainingRun(
        settings=settings,
        folder=folder,
        plan=plan,
        create=lambda: built.create(key),
        like=lambda: built.like(key),
        step=built.step,
        feed=feed,
        evaluators=[accuracy],
        checkpoints=open_run.open_checkpoints(settings.checkpoint, folder, plan, model),
        started=started,
        unit="images",
        terms=("top1",),
    )
    return Finetuning(training, accuracy, list(source.class_names), data.smoke)


def _labelled_share(settings: Finetune, source: Source) -> tuple[Source, str]:
    """The data set reduced to the share `data.fraction` of the training images, and the name of its training split."""
    if not any(map(source.labelled, source.splits)):
        fix = "Sort the images into one sub-folder for each class" if settings.data.folder else "Use labelled images"
        raise UserError(f"{source.name} has no labels, which a classifier needs", f"{fix}.")
    if not settings.data.val_split:
        raise UserError("There is no held-out split, which a classifier needs", held_out.advice(settings))
    for split in (settings.data.train_split, settings.data.val_split):
        if not source.labelled(source.span(split).base):
            raise UserError(
                f"{source.name} has no labels in split {split!r}",
                "Set --config.data.train_split and --config.data.val_split to splits with labels.",
            )
    if settings.data.fraction == 1:
        return source, settings.data.train_split
    return selection.class_balanced_fraction(
        source, settings.data.train_split, settings.data.fraction, seed=settings.seed
    ), "share"


def trained_parts(train: str, parts: list[str]) -> dict[str, tuple[str, ...]]:
    """{network: its trained parts}.

    Args:
      train: "classifier", "all", or names among `parts` such as "layer4,layer3".
      parts: all parts of the backbone.
    """
    names = {"classifier": [], "all": parts}.get(train, [name.strip() for name in train.split(",")])
    chosen = tuple(arguments.choose("config.train", name, ("classifier", "all", *parts)) for name in names)
    return {"backbone": chosen, "classifier": ("kernel", "bias")}


def build_training(
    settings: Finetune,
    plan: epochs.Plan,
    encoder: Encoder,
    recipe: recipes.Recipe,
    num_classes: int,
    mesh: Mesh,
    trained: dict[str, tuple[str, ...]],
) -> build.Training:
    """Builds the networks and the step; `trained` comes from `trained_parts`."""
    tx, rates = _optimizer(settings.optim, plan)
    if not trained["backbone"]:
        del rates["lr_backbone"]
    batch_statistics = {"train": True, "eval": False, "auto": settings.train == "all"}[settings.batch_norm]
    objective = supervised.Supervised(batch_statistics=batch_statistics, classes=num_classes)
    nets = Nets(encoder.net, objective.heads(settings.model, encoder.net.feature_dim))
    update = train_step.make_update(
        objective, nets, tx, seed=settings.seed, rates=rates, mesh=mesh, trained=trained, **plan._asdict()
    )

    def create(key, variables):
        return build.initial_state(key, nets, tx, objective, encoder=variables, trained=trained)

    whole = sharding.replicated(mesh)
    layout = jax.tree.map(lambda _: whole, jax.eval_shape(create, jax.random.key(0), encoder.variables))
    created = compilers.jit(create, runs_once=True, out_shardings=layout)
    step = train_step.make_step(update, recipe, seed=settings.seed)
    return build.Training(objective, nets, step, layout, lambda key: created(key, encoder.variables), update)


def _optimizer(options: FinetuneOptim, plan: epochs.Plan):
    """SGD for the trained params, and the rates of classifier and backbone."""
    rates = {
        "classifier": _schedule(options.lr_classifier, options, plan),
        "backbone": _schedule(options.lr_backbone, options, plan),
    }
    sgd = {"weight_decay": options.weight_decay, "momentum": options.momentum, "nesterov": options.nesterov}
    parts = {name: optim.sgd(rate, rate, **sgd) for name, rate in rates.items()}
    tx = optax.multi_transform(parts, lambda params: {name: name for name in params})
    return tx, {f"lr_{name}": rate for name, rate in rates.items()}


def _schedule(peak: float, options: FinetuneOptim, plan: epochs.Plan) -> optax.Schedule:
    if options.schedule == "cosine":
        cosine = optim.warmup_cosine(peak, warmup_steps=0, total_steps=plan.total_steps, end_factor=0)
        return optim.by_epoch(cosine, plan.steps_per_epoch)
    drops = {plan.steps(epoch): options.drop_factor for epoch in options.drop_epochs}
    return optax.piecewise_constant_schedule(peak, drops)


def _finish(run: Finetuning, state: TrainState) -> None:
    with messages.during("evaluating the classifier"):
        logits, labels = run.accuracy.logits(state)
    values = accuracy.accuracies(logits, labels)
    predicted = logits.argmax(axis=1)
    low, high = confidence.interval((predicted == labels)[labels >= 0])
    summary: dict[str, Any] = {"steps": int(state.step), **values, "top1_interval": [low, high]}
    summary |= {"smoke": run.smoke} if run.smoke else {}
    summary |= {"train_images": run.training.feed.images, "seconds": round(time.monotonic() - run.training.started, 1)}
    messages.say(f"held-out top-1 {100 * values['top1']:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f})")
    open_run.say_smoke(run.smoke)
    figures = pictures.confusion(labels, predicted, logits.shape[1])
    with messages.during("writing the report"):
        write.results(run.training.folder, summary, figures | {"class_names": np.array(run.class_names, str)})
