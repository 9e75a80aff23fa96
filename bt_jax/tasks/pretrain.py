"""Pretraining: from images to an encoder. `run` prepares and trains, `_finish` evaluates the result."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import augment, compilers, messages, randomness
from bt_jax.augment.recipes import Recipe
from bt_jax.config import keys
from bt_jax.config.pretraining import Pretrain
from bt_jax.evals import confidence, correlation, features, pictures, protocols, spectrum
from bt_jax.evals.base import Evaluator
from bt_jax.report import write
from bt_jax.run_folder import lock, step_folders
from bt_jax.state import Nets, TrainState
from bt_jax.tasks import open_run
from bt_jax.tasks.train_and_finish import train_and_finish
from bt_jax.train import build, initial_weights
from bt_jax.train.run import TrainingRun

PICTURE_IMAGES, PICTURE_PAIRS = 512, 16
EVALUATED = {"trained": "the trained encoder", "untrained": "the untrained encoder", "raw_pixels": "raw pixels"}


class Pretraining(NamedTuple):
    """A pretraining run, and what its final evaluation and its pictures need.

    Attributes:
      frozen: features of the train and the held-out split, if both have labels.
      correlation: the cross-correlation, for methods with a projector.
      sample: some training images.
      picture_split: the split whose embedding the report shows as a map.
      fresh: fresh() -> the state at step 0 with weights drawn by the seed.
      smoke: see `open_run.Data`.
    """

    training: TrainingRun
    mesh: Mesh
    recipe: Recipe
    embed: features.Embed
    frozen: protocols.FrozenFeatures | None
    spectrum: spectrum.Spectrum
    correlation: correlation.CrossCorrelation | None
    sample: dict[str, np.ndarray]
    picture_split: str
    class_names: list[str]
    fresh: Callable[[], TrainState]
    smoke: str


@lock.releasing
def run(config: ConfigDict, workdir: str, *, started: float | None = None) -> Path:
    """Trains to the end of the schedule, from the newest checkpoint in `workdir` if there is one.

    Args:
      config: a config of `bt_jax.config.pretrain`, with its overrides.
      workdir: the run folder; made if needed.
      started: `time.monotonic()` when the program began, for the times in messages and summary.

    Returns:
      The run folder, with metrics.jsonl and checkpoints/, and at the end summary.json and report.html.

    Raises:
      UserError: anything the user can fix.
    """
    prepared = _prepare(keys.read(config), workdir, time.monotonic() if started is None else started)
    return train_and_finish(prepared.training, partial(_finish, prepared))


def _prepare(settings: Pretrain, workdir: str, started: float) -> Pretraining:
    mesh = open_run.open_machine(settings)
    recipe = build.build_recipe(settings.views)
    data = open_run.open_data(settings, workdir, mesh, channels=len(recipe.mean), labels=settings.data.labels)
    source, feed = data.source, data.feed
    plan = open_run.open_schedule(settings, data)
    first_id = source.span(data.train_split).start
    built = build.build_training(
        settings, plan, recipe, source.num_classes, mesh, images=feed.images, first_id=first_id
    )
    every_steps = plan.steps(settings.evals.every_epochs)
    evaluated = build.evaluation_recipe(settings.views, settings.evals.size)
    embed = features.make_embed(built.nets.backbone, evaluated, mesh, resize=settings.evals.resize)
    splits = [split for split in (settings.data.train_split, settings.data.val_split) if split]
    frozen = _frozen(settings, data, embed, mesh)
    label_free = spectrum.Spectrum(
        built.nets.backbone,
        recipe,
        feed.passes(splits[-1], settings.evals.spectrum_images),
        mesh=mesh,
        key=randomness.stream(settings.seed, randomness.MONITOR),
        every_steps=every_steps if settings.evals.spectrum_images else 0,
    )
    new = not step_folders.has_checkpoints(workdir)
    initial = initial_weights.read(settings.init_from, built.nets) if settings.init_from and new else None
    sample = feed.sample(PICTURE_IMAGES)
    devices = jax.devices()
    folder = open_run.open_folder(
        settings, workdir, data, recipe, f"{source.name} on {len(devices)} x {devices[0].device_kind}"
    )
    matrix = _correlation(settings, built.nets, recipe, sample, folder, every_steps)
    evaluators = _with_labels(settings, frozen, every_steps) + [label_free] + ([matrix] if matrix else [])
    model = {"build": build.backbone_options(settings.model, len(recipe.mean)), "mean": recipe.mean, "std": recipe.std}
    init_key = randomness.stream(settings.seed, randomness.INIT)

    def create() -> TrainState:
        drawn = built.create(init_key)
        return initial_weights.initialise(initial, drawn, init_memory) if initial else drawn

    init_memory = built.init_memory and partial(built.init_memory, init_key)
    training = TrainingRun(
        settings=settings,
        folder=folder,
        plan=plan,
        create=create,
        like=lambda: built.like(init_key),
        step=built.step,
        feed=feed,
        evaluators=evaluators,
        checkpoints=open_run.open_checkpoints(settings.checkpoint, folder, plan, model),
        started=started,
        terms=[name for name, metric in built.objective.metrics.items() if metric.term],
    )
    return Pretraining(
        training=training,
        mesh=mesh,
        recipe=recipe,
        embed=embed,
        frozen=frozen,
        spectrum=label_free,
        correlation=matrix,
        sample=sample,
        picture_split=splits[-1],
        class_names=list(source.class_names),
        fresh=lambda: built.create(init_key),
        smoke=data.smoke,
    )


def _frozen(
    settings: Pretrain, data: open_run.Data, embed: features.Embed, mesh: Mesh
) -> protocols.FrozenFeatures | None:
    """Features of the train and the held-out split; None unless both have labels."""
    splits, source = (settings.data.train_split, settings.data.val_split), data.source
    if not all(split and source.labelled(source.span(split).base) for split in splits):
        return None
    limits = (settings.evals.train_images, settings.evals.val_images)
    train, val = (data.feed.passes(split, limit) for split, limit in zip(splits, limits, strict=True))
    return protocols.FrozenFeatures(embed, train, val, mesh=mesh, num_classes=source.num_classes, names=splits)


def _with_labels(settings: Pretrain, frozen: protocols.FrozenFeatures | None, every_steps: int) -> list[Evaluator]:
    """The evaluators that need labels."""
    if frozen is None:
        return []
    knn = protocols.KNN(frozen, **_neighbours(settings), every_steps=every_steps)
    return [knn, protocols.OnlineProbe(frozen, every_steps=every_steps)]


def _correlation(
    settings: Pretrain, nets: Nets, recipe: Recipe, sample: dict[str, np.ndarray], folder: Path, every_steps: int
) -> correlation.CrossCorrelation | None:
    """The cross-correlation of the projector's outputs; None for a method without a projector."""
    if "projector" not in nets.heads:
        return None
    return correlation.CrossCorrelation(
        nets,
        recipe,
        sample,
        key=randomness.stream(settings.seed, randomness.VIEWS),
        folder=folder / "correlation" if jax.process_index() == 0 else None,
        every_steps=every_steps,
    )


def _neighbours(settings: Pretrain) -> dict[str, tuple]:
    """The arguments of `protocols.KNN`, from the config."""
    return {"ks": (settings.evals.knn_k,), "temperatures": (settings.evals.knn_temperature,)}


# ------------------------------------------------------------------------------------------------------------ the end


def _finish(run: Pretraining, state: TrainState) -> None:
    """Prints the table and writes the pictures and the report of a finished run."""
    settings, folder = run.training.settings, run.training.folder
    summary: dict[str, Any] = {"steps": int(state.step), **({"smoke": run.smoke} if run.smoke else {})}
    with messages.during("evaluating the trained encoder: pictures and label-free metrics"):
        before = run.fresh()
        arrays = _pictures(run, before, state)
        if settings.evals.spectrum_images:
            summary["unlabelled"], arrays["spectrum_trained"] = run.spectrum.measure(state)
            _, arrays["spectrum_untrained"] = run.spectrum.measure(before)
        images = features.extract_with_thumbnails(
            run.embed, state.encoder(), run.training.feed.passes(run.picture_split, pictures.MAP_IMAGES)(), run.mesh
        )
        arrays |= pictures.map_and_neighbours(*images)
    if run.frozen and settings.evals.final:
        compared = {"trained": (run.frozen, state), "untrained": (run.frozen, before)}
        if settings.data.on_device:
            compared["raw_pixels"] = (run.frozen.with_embed(features.raw_pixels(run.recipe, run.mesh)), state)
        summary |= _final_scores(run, compared)
        predicted, labels = summary.pop("predicted")
        arrays |= pictures.confusion(labels, predicted, len(run.class_names))
        arrays |= {"class_names": np.array(run.class_names, str)}
        messages.say(_table(summary))
        open_run.say_smoke(run.smoke)
    with messages.during("writing the report"):
        summary["seconds"] = round(time.monotonic() - run.training.started, 1)
        write.results(folder, summary, arrays)


def _final_scores(run: Pretraining, compared: dict[str, tuple[protocols.FrozenFeatures, TrainState]]) -> dict[str, Any]:
    """Evaluates every entry of `compared` by kNN and linear probe.

    Returns:
      {"knn_top1": {name: …}, "knn_k": number of neighbours that vote, "linear_top1": {name: …}, "linear_interval":
      {name: (low, high)}, "predicted": (classes that the first entry's linear probe predicts, true classes)}
    """
    found: dict[str, Any] = {"knn_top1": {}, "linear_top1": {}, "linear_interval": {}}
    for name, (frozen, state) in compared.items():
        knn, what = protocols.KNN(frozen, **_neighbours(run.training.settings)), EVALUATED[name]
        with messages.during(f"evaluating {what} by kNN"):
            found["knn_top1"][name] = knn.run(state)["val/knn_top1"]
        found["knn_k"] = knn.ks(state)[0]
        with messages.during(f"evaluating {what} by linear probe"):
            fitted, labels = protocols.LinearProbe(frozen).fit(state)
        right = fitted.predicted == labels
        found["linear_top1"][name] = float(right.mean())
        found["linear_interval"][name] = confidence.interval(right)
        found.setdefault("predicted", (fitted.predicted, labels))
    return found


def _pictures(run: Pretraining, before: TrainState, after: TrainState) -> dict[str, np.ndarray]:
    """The cross-correlation of some training images before and after training, and some of their views as uint8."""
    batch = {name: values[:PICTURE_PAIRS] for name, values in run.sample.items()}
    key = randomness.stream(run.training.settings.seed, randomness.VIEWS)
    two_views = compilers.jit(
        lambda batch: augment.two_views(key, batch["image"], run.recipe, ids=batch["id"], sizes=batch.get("size"))
    )
    mean, std = np.asarray(run.recipe.mean), np.asarray(run.recipe.std)
    view1, view2 = (np.uint8(np.clip(255 * (np.asarray(v) * std + mean), 0, 255)) for v in two_views(batch))
    # Padded canvases are left out, because the image fills only a part of each.
    originals = {} if "size" in batch else {"originals": batch["image"]}
    seen = originals | {"view1": view1, "view2": view2}
    if run.correlation is None:
        return seen
    c_before, c_after = run.correlation.matrix(before), run.correlation.matrix(after)
    return (
        seen
        | {"c_before": correlation.for_heat_map(c_before), "c_after": correlation.for_heat_map(c_after)}
        | pictures.off_diagonal_histograms(c_before, c_after)
        | pictures.redundant_pairs(c_after)
        | run.correlation.history()
    )


def _table(summary: dict) -> str:
    titles = {"trained": "trained encoder", "untrained": "same encoder, untrained", "raw_pixels": "raw pixels"}
    neighbours = f"{summary['knn_k']}-NN"
    lines = [f"\n{'top-1 on held-out images':28}{neighbours:>10}{'linear probe':>15}"]
    for name in summary["knn_top1"]:
        knn, linear = 100 * summary["knn_top1"][name], 100 * summary["linear_top1"][name]
        lines.append(f"{titles[name]:28}{knn:8.1f} %{linear:13.1f} %")
    return "\n".join(lines) + "\n"
