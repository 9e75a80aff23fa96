"""Evaluation of an encoder by protocols on frozen features, all from one pass over each split."""

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
      config: of `bt_jax.config.evaluate`, overridden.

    Returns:
      The folder, with metrics.jsonl, summary.json and report.html.

    Raises:
      UserError: anything the user can fix.
    """
    started = time.monotonic() if started is None else started
    settings = keys.read(from_encoder.complete(config))
    mesh = open_run.open_machine(settings)
    for name in settings.protocols:
        arguments.choose("config.protocols", name, PROTOCOLS)
    encoder = from_encoder.open_encoder(settings)
    joined = partial(_joined, settings.data.train_split)
    data = open_run.open_data(settings, workdir, mesh, len(encoder.mean), joined)
    source, feed = data.source, data.feed
    opening.check_same_run(settings, images=feed.images, **data.images.facts())
    recipe = from_encoder.view_recipe(settings.views, encoder)
    embed = features.make_embed(encoder.net, recipe, mesh, resize=settings.evals.resize)
    evaluators = _evaluators(settings, data, embed, encoder, recipe, mesh)
    about = f"{settings.encoder} ({encoder.net.arch}) on {source.name}"
    folder = open_run.open_folder(settings, workdir, data, recipe, about)

    written = metrics_log.RunLog(folder, first_step=-1, tensorboard=False, trackers=trackers.start(folder, settings))
    summary: dict[str, Any] = {"seconds": 0.0, "seconds_each": {}, **({"smoke": data.smoke} if data.smoke else {})}
    for name, evaluator in evaluators.items():
        began = time.monotonic()
        watchdog.report_progress(0, watchdog.Phase.EVALUATING, name)
        values = evaluator.run(encoder)
        summary["seconds_each"][name] = round(time.monotonic() - began, 1)
        summary[name] = {key.removeprefix("val/"): value for key, value in values.items()}
        written.write(0, values)
        messages.say(f"{name}, {summary['seconds_each'][name]:.0f} s")
    written.sync()
    written.close()
    messages.say(_table(summary))
    open_run.say_smoke(data.smoke)
    summary["seconds"] = round(time.monotonic() - started, 1)
    shown = _pictures(settings, data, evaluators, embed, encoder, mesh)
    write.results(folder, summary, shown)
    return folder


def _joined(train_split: str, source: Source) -> tuple[Source, str]:
    """A data set in which "train+validation" is one split, and its name there."""
    return (selection.concatenated(source, train_split), "joined") if "+" in train_split else (source, train_split)


def _evaluators(settings: Evaluate, data, embed, encoder, recipe, mesh) -> dict[str, Evaluator]:
    """The evaluators of `config.protocols`, which share the features."""
    source, feed, evals = data.source, data.feed, settings.evals
    splits = [split for split in (data.train_split, settings.data.val_split) if split]
    bases = [source.span(split).base for split in splits]
    labelled = len(splits) == 2 and all(source.labelled(base) for base in bases)
    frozen = None
    if len(splits) == 2:
        train = feed.passes(data.train_split, evals.train_images)
        val = feed.passes(settings.data.val_split, evals.val_images)
        classes = source.num_classes if labelled else 0
        names = (settings.data.train_split, settings.data.val_split)
        frozen = protocols.FrozenFeatures(
            embed, train, val, mesh=mesh, num_classes=classes, names=names, check=not evals.train_images
        )
    found: dict[str, Evaluator] = {}
    for name in settings.protocols:
        if name in ("knn", "linear") and len(splits) < 2:
            raise UserError(
                f"There is no held-out split, which {name} needs",
                f"{held_out.advice(settings)} Or ask for what needs none: \"--config.protocols=('spectrum',)\".",
            )
        if name in ("knn", "linear") and not labelled:
            raise UserError(
                f"{source.name} has no labels in both splits, and {name} needs them",
                "Name labelled splits, or ask for what needs none: \"--config.protocols=('spectrum',)\".",
            )
        if name == "knn":
            found[name] = protocols.KNN(frozen, ks=evals.knn_k, temperatures=evals.knn_temperature)
        elif name == "linear":
            found[name] = protocols.LinearProbe(frozen, epochs=evals.linear_epochs)
        elif name == "spectrum":
            images = feed.passes(splits[-1], evals.spectrum_images)
            key = randomness.stream(settings.seed, randomness.MONITOR)
            found[name] = spectrum.Spectrum(encoder.net, recipe, images, mesh=mesh, key=key, every_steps=0)
        else:
            found[name] = protocols.SVM(frozen, *_targets(source, splits))
    return found


def _targets(source, splits: list[str]) -> list[np.ndarray]:
    if len(splits) < 2:
        raise UserError("The SVMs need a train and a held-out split", "Set --config.data.val_split.")
    found = []
    for split in splits:
        span = source.span(split)
        targets = source.targets(span.base)
        if targets is None:
            raise UserError(
                f"{source.name} has one label an image, or none: the SVMs are for several", "Ask for knn and linear."
            )
        found.append(targets[span.start : span.stop])
    return found


def _table(summary: dict[str, Any]) -> str:
    """The results of all protocols in words, as in the report."""
    lines = []
    if rows := results.accuracies(summary):
        lines += [f"\n{'on held-out images':36}{'accuracy':>10}   95 % interval"]
        lines += [f"{name:36}{percent(value):>10}   {interval}" for name, value, interval in rows]
    metrics = summary.get("spectrum", {})
    if known := [name for name in results.UNLABELLED if name in metrics]:
        lines += ["\nwithout labels"]
        lines += [f"{results.UNLABELLED[name]:36}{short(metrics[name]):>10}" for name in known]
    return "\n".join(lines) + "\n"


def _pictures(settings: Evaluate, data, evaluators, embed, encoder, mesh) -> dict[str, np.ndarray]:
    passes = data.feed.passes(settings.data.val_split or data.train_split, pictures.MAP_IMAGES)
    images = features.extract_with_thumbnails(embed, encoder.encoder(), passes(), mesh)
    shown = pictures.map_and_neighbours(*images)
    if "spectrum" in evaluators:
        _, shown["spectrum_trained"] = evaluators["spectrum"].measure(encoder)
    if "linear" in evaluators:
        fitted, labels = evaluators["linear"].fit(encoder)
        shown |= pictures.confusion(labels, fitted.predicted, data.source.num_classes)
    return shown | {"class_names": np.array(data.source.class_names, str)}
