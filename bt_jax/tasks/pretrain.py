"""Pretraining: from images to an encoder. `run` prepares and trains, `_finish` judges what came out."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import augment, compilers, messages, randomness
from bt_jax.augment.recipes import Recipe
from bt_jax.data import batches
from bt_jax.evals import confidence, correlation, features, pictures, protocols, spectrum
from bt_jax.report import write
from bt_jax.run_folder import lock, step_folders
from bt_jax.state import TrainState
from bt_jax.tasks import open_run
from bt_jax.train import build, initial_weights, loop

PICTURE_IMAGES, PICTURE_PAIRS = 512, 16


class Run(NamedTuple):
    """What is pretrained, and what judges it.

    Attributes:
      fresh: fresh() -> the state at step 0 with weights drawn by the seed.
      given: the weights of `config.init_from`, for a run that has no checkpoint yet.
    """

    loop: loop.Loop
    mesh: Mesh
    recipe: Recipe
    embed: features.Embed
    frozen: protocols.Frozen | None
    spectrum: spectrum.Spectrum
    correlation: correlation.CrossCorrelation
    sample: dict[str, np.ndarray]
    shown_split: str
    class_names: list[str]
    fresh: Callable[[], TrainState]
    given: initial_weights.InitialWeights | None


@lock.releasing
def run(config: ConfigDict, workdir: str, *, started: float | None = None) -> Path:
    """Trains to the end of the schedule, or goes on from the newest checkpoint in `workdir`.

    Args:
      config: of `bt_jax.config.pretrain`, overridden.
      workdir: the run folder; made if needed.
      started: `time.monotonic()` when the program began, for the times that are shown.

    Returns:
      The run folder, with metrics.jsonl and checkpoints/, and at the end summary.json and report.html.

    Raises:
      UserError: anything the user can mend.
    """
    this = _prepare(config, workdir, time.monotonic() if started is None else started)
    state, folder = this.fresh(), this.loop.folder
    if this.given and this.loop.checkpoints.latest() is None:
        state = initial_weights.begin_with(this.given, state)
    state = loop.train(this.loop, loop.resume_or(this.loop, state))
    if int(state.step) == this.loop.plan.total_steps and not write.concluded(folder, int(state.step)):
        _finish(this, state)
    this.loop.checkpoints.close()
    return folder


def _prepare(config: ConfigDict, workdir: str, started: float) -> Run:
    mesh = open_run.open_machine(config)
    recipe = build.build_recipe(config)
    data = open_run.open_data(config, mesh, channels=len(recipe.mean))
    source, feed = data.source, data.feed
    plan = open_run.open_schedule(config, data)
    first_id = source.span(data.train_split).start
    training = build.build_training(
        config, plan, recipe, source.num_classes, mesh, images=feed.images, first_id=first_id
    )
    nets = training.nets
    every_steps = plan.steps(config.evals.every_epochs)
    embed = features.make_embed(nets.backbone, build.evaluation_recipe(config), mesh, resize=config.evals.resize)
    splits = [split for split in (config.data.train_split, config.data.val_split) if split]
    evaluators, frozen = [], None
    if len(splits) == 2 and all(source.labelled(source.span(split).base) for split in splits):
        train = feed.passes(config.data.train_split, config.evals.train_images)
        val = feed.passes(config.data.val_split, config.evals.val_images)
        frozen = protocols.Frozen(embed, train, val, mesh=mesh, num_classes=source.num_classes, names=splits)
        evaluators.append(protocols.KNN(frozen, **_neighbours(config, feed), every_steps=every_steps))
        evaluators.append(protocols.OnlineProbe(frozen, every_steps=every_steps))
    unlabelled = spectrum.Spectrum(
        nets.backbone,
        recipe,
        feed.passes(splits[-1], config.evals.spectrum_images),
        mesh=mesh,
        key=randomness.stream(config.seed, randomness.MONITOR),
        every_steps=every_steps if config.evals.spectrum_images else 0,
    )
    begun = step_folders.begun(workdir)
    given = initial_weights.read(config.init_from, nets) if config.init_from and not begun else None
    sample = feed.sample(PICTURE_IMAGES)
    devices = jax.devices()
    about = f"{source.name} on {len(devices)} x {devices[0].device_kind}"
    folder = open_run.open_folder(config, workdir, data, about)
    model = {"build": build.backbone_options(config, len(recipe.mean)), "mean": recipe.mean, "std": recipe.std}
    checkpoints = open_run.open_checkpoints(config, folder, plan, model)
    init_key = randomness.stream(config.seed, randomness.INIT)
    matrix = correlation.CrossCorrelation(
        nets,
        recipe,
        sample,
        key=randomness.stream(config.seed, randomness.VIEWS),
        folder=folder / "correlation" if jax.process_index() == 0 else None,
        every_steps=every_steps,
    )
    evaluators += [unlabelled, matrix]
    terms = [name for name, metric in training.objective.metrics.items() if metric.term]
    this = loop.Loop(config, folder, plan, training.step, feed, evaluators, checkpoints, started, terms=terms)
    return Run(
        this,
        mesh,
        recipe,
        embed,
        frozen,
        unlabelled,
        matrix,
        sample,
        splits[-1],
        list(source.class_names),
        lambda: training.create(init_key),
        given,
    )


def _neighbours(config: ConfigDict, feed: batches.Feed) -> dict[str, tuple]:
    """As many neighbours as the config says, or all of a smaller set."""
    images = min(config.evals.train_images or feed.images, feed.images)
    return {"ks": (min(config.evals.knn_k, images),), "temperatures": (config.evals.knn_temperature,)}


# ------------------------------------------------------------------------------------------------------------ the end


def _finish(this: Run, state: TrainState) -> None:
    """The table, the pictures and the report of a run that reached its end."""
    config, folder, before = this.loop.config, this.loop.folder, this.fresh()
    shown = _pictures(this, before, state)
    summary: dict[str, Any] = {"steps": int(state.step)}
    if config.evals.spectrum_images:
        summary["unlabelled"], shown["spectrum_trained"] = this.spectrum.of(state)
        _, shown["spectrum_untrained"] = this.spectrum.of(before)
    images = features.gallery(
        this.embed, state.encoder(), this.loop.feed.passes(this.shown_split, pictures.MAP_IMAGES)(), this.mesh
    )
    shown |= pictures.of_embedding(*images)
    if this.frozen and config.evals.final:
        compared = {"trained": (this.frozen, state), "untrained": (this.frozen, before)}
        if config.data.on_device:
            compared["raw_pixels"] = (this.frozen.by(features.raw_pixels(this.recipe, this.mesh)), state)
        summary |= _judge(this, compared)
        predicted, labels = summary.pop("predicted")
        shown |= pictures.confusion(labels, predicted, len(this.class_names))
        shown |= {"class_names": np.array(this.class_names, str)}
        messages.say(_table(summary))
    summary["seconds"] = round(time.monotonic() - this.loop.started, 1)
    write.conclude(folder, summary, shown)
    messages.say(f"checkpoint  {folder / 'checkpoints' / str(int(state.step))}\nmetrics     {folder / 'metrics.jsonl'}")


def _judge(this: Run, compared: dict[str, tuple[protocols.Frozen, TrainState]]) -> dict[str, Any]:
    """{"knn_top1": {name: …}, "linear_top1": {name: …}, "linear_interval": {name: (low, high)}, "predicted": (classes
    by the linear probe of the first, true classes)}."""
    found: dict[str, Any] = {"knn_top1": {}, "linear_top1": {}, "linear_interval": {}}
    for name, (frozen, state) in compared.items():
        knn = protocols.KNN(frozen, **_neighbours(this.loop.config, this.loop.feed))
        found["knn_top1"][name] = knn.run(state)["val/knn_top1"]
        fitted, labels = protocols.LinearProbe(frozen).fit(state)
        right = fitted.predicted == labels
        found["linear_top1"][name] = float(right.mean())
        found["linear_interval"][name] = confidence.interval(right)
        found.setdefault("predicted", (fitted.predicted, labels))
    return found


def _pictures(this: Run, before: TrainState, after: TrainState) -> dict[str, np.ndarray]:
    """c of some training images before and after, and some of their views as uint8."""
    batch = {name: values[:PICTURE_PAIRS] for name, values in this.sample.items()}
    key = randomness.stream(this.loop.config.seed, randomness.VIEWS)
    two_views = compilers.jit(
        lambda batch: augment.two_views(key, batch["image"], this.recipe, ids=batch["id"], sizes=batch.get("size"))
    )
    mean, std = np.asarray(this.recipe.mean), np.asarray(this.recipe.std)
    view1, view2 = (np.uint8(np.clip(255 * (np.asarray(v) * std + mean), 0, 255)) for v in two_views(batch))
    # Padded canvases are left out: an image there is smaller than its frame.
    originals = {} if "size" in batch else {"originals": batch["image"]}
    c_before, c_after = this.correlation.of(before), this.correlation.of(after)
    return (
        originals
        | {"view1": view1, "view2": view2}
        | {"c_before": correlation.picture(c_before), "c_after": correlation.picture(c_after)}
        | pictures.off_diagonal_histograms(c_before, c_after)
        | pictures.redundant_pairs(c_after)
        | this.correlation.history()
    )


def _table(summary: dict) -> str:
    titles = {"trained": "trained encoder", "untrained": "same encoder, untrained", "raw_pixels": "raw pixels"}
    lines = [f"\n{'top-1 on held-out images':28}{'kNN':>10}{'linear probe':>15}"]
    for name in summary["knn_top1"]:
        knn, linear = 100 * summary["knn_top1"][name], 100 * summary["linear_top1"][name]
        lines.append(f"{titles[name]:28}{knn:8.1f} %{linear:13.1f} %")
    return "\n".join(lines) + "\n"
