"""Evaluates an encoder by protocols on frozen features. kNN, linear probe and SVMs share one pass over each split."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bt_jax import messages, randomness
from bt_jax.config import arguments, keys
from bt_jax.config.encoder_tasks import Evaluate
from bt_jax.data.sources import selection
from bt_jax.data.sources.base import Source
from bt_jax.evals import features, pictures, protocols, spectrum
from bt_jax.evals.base import Evaluator
from bt_jax.messages import UserError
from bt_jax.processes import watchdog
from bt_jax.report import results, write
from bt_jax.report.formats import percent, short
from bt_jax.run_folder import lock, metrics_log, opening, trackers
from bt_jax.tasks import from_encoder, held_out, open_run

PROTOCOLS = ("knn", "linear", "spectrum", "svm")


@lock.releasing
def run(config: ConfigDict, workdir: str, *, started: float | None = None) -> Path:
    """Runs `config.protocols`.

    Args:
      config: a config of `bt_jax.config.evaluate`, with its overrides.

    Returns:
      The run folder, with metrics.jsonl, summary.json and report.html.

    Raises:
      UserError: anything the user can fix.
    """
    started = time.monotonic() if started is None else started
    settings = keys.read(from_encoder.complete(config))
    mesh = open_run.open_machine(settings)
    for name in settings.protocols:
        arguments.choose("config.protocols", name, PROTOCOLS)
    encoder = from_encoder.open_encoder(settings)
    join_splits = partial(_joined, settings.data.train_split)
    data = open_run.open_data(settings, workdir, mesh, len(encoder.mean), join_splits)
    source, feed = data.source, data.feed
    opening.check_same_run(settings, images=feed.images, **data.images.facts())
    recipe = from_encoder.view_recipe(settings.views, encoder)
    embed = features.make_embed(encoder.net, recipe, mesh, resize=settings.evals.resize)
    evaluators = _evaluators(settings, data, embed, encoder, recipe, mesh)
    about = f"{settings.encoder} ({encoder.net.arch}) on {from_encoder.about_images(settings, source)}"
    folder = open_run.open_folder(settings, workdir, data, recipe, about)
    from_encoder.say_size(config)

    log = metrics_log.RunLog(folder, first_step=-1, tensorboard=False, trackers=trackers.start(folder, settings))
    summary: dict[str, Any] = {"seconds": 0.0, "seconds_each": {}, **({"smoke": data.smoke} if data.smoke else {})}
    for name, evaluator in evaluators.items():
        evaluation_started = time.monotonic()
        watchdog.report_progress(0, watchdog.Phase.EVALUATING, name)
        with messages.during(f"evaluating {name}"):
            values = evaluator.run(encoder)
        summary["seconds_each"][name] = round(time.monotonic() - evaluation_started, 1)
        summary[name] = {key.removeprefix("val/"): value for key, value in values.items()}
        log.write(0, values)
        messages.say(f"evaluated {name} in {summary['seconds_each'][name]:.0f} s")
    log.sync()
    log.close()
    messages.say(_table(summary))
    open_run.say_smoke(data.smoke)
    summary["seconds"] = round(time.monotonic() - started, 1)
    with messages.during("writing the report"):
        write.results(folder, summary, _pictures(settings, data, evaluators, embed, encoder, mesh))
    return folder


def _joined(train_split: str, source: Source) -> tuple[Source, str]:
    """The data set with "train+validation" joined into one split, and the name of the training split."""
    return (selection.concatenated(source, train_split), "joined") if "+" in train_split else (source, train_split)


def _evaluators(settings: Evaluate, data, embed, encoder, recipe, mesh) -> dict[str, Evaluator]:
    """The evaluators of `config.protocols`; all but the spectrum share the features."""
    source, feed, evals = data.source, data.feed, settings.evals
    splits = [split for split in (data.train_split, settings.data.val_split) if split]
    bases = [source.span(split).base for split in splits]
    labelled = all(source.labelled(base) for base in bases)
    frozen = None
    if len(splits) == 2:
        train = feed.passes(data.train_split, evals.train_images)
        val = feed.passes(settings.data.val_split, evals.val_images)
        classes = source.num_classes if labelled else 0
        names = (settings.data.train_split, settings.data.val_split)
        frozen = protocols.FrozenFeatures(
            embed, train, val, mesh=mesh, num_classes=classes, names=names, check=not evals.train_images
        )
    evaluators: dict[str, Evaluator] = {}
    for name in settings.protocols:
        if name in ("knn", "linear") and not labelled:
            raise UserError(
                f"{source.name} does not have labels in {' and '.join(dict.fromkeys(splits))}, and {name} needs them",
                "Name labelled splits, or choose a protocol that needs no labels:"
                " \"--config.protocols=('spectrum',)\".",
            )
        if name in ("knn", "linear") and len(splits) < 2:
            raise UserError(
                f"There is no held-out split, which {name} needs",
                f"{held_out.advice(settings)} Or choose a protocol that needs none:"
                " \"--config.protocols=('spectrum',)\".",
            )
        if name == "knn":
            evaluators[name] = protocols.KNN(frozen, ks=evals.knn_k, temperatures=evals.knn_temperature)
        elif name == "linear":
            evaluators[name] = protocols.LinearProbe(frozen, epochs=evals.linear_epochs)
        elif name == "spectrum":
            images = feed.passes(splits[-1], evals.spectrum_images)
            key = randomness.stream(settings.seed, randomness.MONITOR)
            evaluators[name] = spectrum.Spectrum(encoder.net, recipe, images, mesh=mesh, key=key, every_steps=0)
        else:
            evaluators[name] = protocols.SVM(frozen, *_targets(source, splits))
    return evaluators


def _targets(source, splits: list[str]) -> list[np.ndarray]:
    """The labels of the images of each split, several per image."""
    if len(splits) < 2:
        raise UserError("The SVMs need a train and a held-out split", "Set --config.data.val_split.")
    of_splits = []
    for split in splits:
        span = source.span(split)
        targets = source.targets(span.base)
        if targets is None:
            raise UserError(
                f"{source.name} has at most one label per image, but the SVMs need several",
                "Choose other protocols: \"--config.protocols=('knn','linear')\".",
            )
        of_splits.append(targets[span.start : span.stop])
    return of_splits


def _table(summary: dict[str, Any]) -> str:
    """The results of all protocols as a table, with the words of the report."""
    lines = []
    if rows := results.accuracies(summary):
        lines += [f"\n{'on held-out images':36}{'accuracy':>10}   95 % interval"]
        lines += [f"{name:36}{percent(value):>10}   {interval}" for name, value, interval in rows]
    metrics = summary.get("spectrum", {})
    if known := [name for name in results.UNLABELLED if name in metrics]:
        lines += [f"\nwithout labels, {results.UNLABELLED_VIEWS}"]
        lines += [f"{results.UNLABELLED[name]:36}{short(metrics[name]):>10}" for name in known]
    return "\n".join(lines) + "\n"


def _pictures(settings: Evaluate, data, evaluators, embed, encoder, mesh) -> dict[str, np.ndarray]:
    """The arrays of the pictures in the report."""
    passes = data.feed.passes(settings.data.val_split or data.train_split, pictures.MAP_IMAGES)
    images = features.extract_with_thumbnails(embed, encoder.encoder(), passes(), mesh)
    arrays = pictures.map_and_neighbours(*images)
    if "spectrum" in evaluators:
        _, arrays["spectrum_trained"] = evaluators["spectrum"].measure(encoder)
    if "linear" in evaluators:
        fitted, labels = evaluators["linear"].fit(encoder)
        arrays |= pictures.confusion(labels, fitted.predicted, data.source.num_classes)
    return arrays | {"class_names": np.array(data.source.class_names, str)}
