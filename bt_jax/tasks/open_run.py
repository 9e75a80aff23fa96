"""Opens what a task needs, in this order: the machine, the data, the schedule of training, and last the run folder."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from bt_jax import messages, sharding, storage
from bt_jax.augment.recipes import Recipe
from bt_jax.cli import command_line
from bt_jax.config import arguments
from bt_jax.config.encoder_tasks import Evaluate
from bt_jax.config.pretraining import Pretrain
from bt_jax.config.sections import Checkpoint, Run
from bt_jax.data import batches, feeds
from bt_jax.data.sources import class_check, identity, orientation, selection
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.broken import UnreadableImages
from bt_jax.messages import UserError
from bt_jax.run_folder import opening, same_data, step_folders, trackers
from bt_jax.run_folder.checkpoints import Checkpoints
from bt_jax.tasks import held_out
from bt_jax.train import epochs


class Data(NamedTuple):
    """The images of a task.

    Attributes:
      broken: the record of the unreadable images.
      images: the description of the images that the run folder keeps, and that the next start compares.
      train_split: the training split of `source`. It differs from the config's if `select` took a part or joined
        splits.
      smoke: "64 of 127 images" for a run of the `:smoke` form; "" for any other run.
    """

    source: Source
    broken: UnreadableImages
    feed: batches.Feed
    train_split: str
    images: same_data.Images
    smoke: str = ""


def open_machine(settings: Run) -> Mesh:
    """The mesh over all devices.

    Raises:
      UserError: the devices are not those of the config, or they cannot share a batch evenly.
    """
    trackers.check(settings.log)
    mesh = sharding.make_mesh()
    check_devices(settings, mesh)
    if settings.task != "evaluate":  # evaluations have batches of another size
        sharding.check_batch(settings.batch_size, mesh)
    return mesh


def open_data(
    settings: Run,
    workdir: str,
    mesh: Mesh,
    channels: int,
    select: Callable[[Source], tuple[Source, str]] | None = None,
    *,
    labels: bool = True,
) -> Data:
    """The data set of the config.

    Args:
      workdir: the run folder; a resumed run keeps its EXIF orientation.
      channels: channels of the images, 1 or 3.
      select: select(source) -> (the data set to use, the name of its training split). The new data set can be a share
        of the images, for example. The config does not change.
      labels: False: leave out the labels of the data set.
    """
    options = settings.data
    if options.exif_orientation == "auto":
        options = dataclasses.replace(options, exif_orientation=_orientation_of_run(workdir))
    source, broken = feeds.open_data(options, labels=labels)
    held_out.check_split(settings, source)
    whole, splits = source, [settings.data.train_split, settings.data.val_split]
    images = same_data.Images(identity.describe(whole, splits), lambda: identity.describe(whole.as_in_0_1_0(), splits))
    source, train_split = select(source) if select else (source, settings.data.train_split)
    feed = feeds.make_feed(settings, source, mesh, broken, channels, train_split)
    smoke = _share_of_smoke(settings, source, feed.images) if settings.smoke else ""
    return Data(source, broken, feed, train_split, images, smoke)


def _share_of_smoke(settings: Run, source: Source, images: int) -> str:
    """The images that the task uses, of all images in its training splits, as "64 of 127 images"."""
    wholes = {selection.unmixed(source, source.span(part).base) for part in settings.data.train_split.split("+")}
    limit = settings.evals.train_images if isinstance(settings, Evaluate) else 0
    return f"{min(limit or images, images)} of {sum(source.splits[whole] for whole in wholes)} images"


def say_smoke(share: str) -> None:
    """Says that the numbers of a run of the `:smoke` form mean nothing; `share` is `Data.smoke`."""
    if share:
        messages.say(f"smoke test: {share}; it tests the set-up, and its numbers mean nothing")


def _orientation_of_run(workdir: str) -> str:
    """`data.exif_orientation` of the run in a folder. A run from before this key has "ignore"; no run: "auto"."""
    try:
        config = storage.read_json(storage.absolute(storage.parse_path(workdir)) / "config.json")
    except ValueError:  # damaged, which `open_folder` reports
        return "auto"
    return "auto" if config is None else config.get("data", {}).get("exif_orientation", orientation.IGNORE)


def open_schedule(settings: Run, data: Data) -> epochs.Plan:
    """Converts epochs to steps. Several processes compare steps, config and data; UserError if they differ."""
    plan = epochs.make_plan(settings, data.feed.images)
    if isinstance(settings, Pretrain):
        check_rate(settings)
        check_warmup(settings)
    facts = data.images.facts() | {"reader of images": feeds.reader_of(settings.data)}
    facts["EXIF orientation"] = _orientation(data.source)
    opening.check_same_run(settings, images=data.feed.images, steps_per_epoch=plan.steps_per_epoch, **facts)
    return plan


def open_folder(settings: Run, workdir: str, data: Data, recipe: Recipe, about: str) -> Path:
    """The run folder. The first start writes its config there, so it is opened last, after every other check.

    Args:
      recipe: the views, whose mean and std are recorded.
      about: the text that is printed after the folder's name.
    """
    check_classes(settings, workdir, data.source)
    held_out.say(settings, data.source)
    config, reader = arguments.to_dict(settings), settings.data.reader
    # Keys that the config leaves open are recorded with the values in use. The next start compares them, and other
    # programs need mean and std.
    config["data"] |= {"reader": feeds.reader_of(settings.data), "exif_orientation": _orientation(data.source)}
    filled = {name: list(getattr(recipe, name)) for name in ("mean", "std") if config["views"][name] is None}
    config["views"] |= filled
    folder = opening.open_folder(
        workdir,
        config,
        data.images,
        free=() if reader == "auto" else ("data.reader",),
        filled=[f"views.{name}" for name in filled],
    )
    data.broken.write_to(opening.per_process_file(folder, "broken.txt"))
    messages.say(f"{folder}: {about}")
    say_smoke(data.smoke)
    return folder


def _orientation(source: Source) -> str:
    return orientation.APPLY if source.upright else orientation.IGNORE


def open_checkpoints(options: Checkpoint, folder: Path, plan: epochs.Plan, model: dict[str, Any]) -> Checkpoints:
    """The checkpoints of the run folder; `model` is what `load.read_model` reads from each."""
    keep_every = plan.steps(options.keep_every_epochs)
    return Checkpoints(folder, model=model, keep_last=options.keep_last, keep_every=keep_every)


def check_classes(settings: Run, workdir: str, source: Source) -> None:
    """Warns if training and held-out images have different classes, as `class_check.compare` finds.

    Raises:
      UserError: both are slices of one split, no training image has some of the held-out classes, and the run is a new
        one that evaluates by labels.
    """
    splits = settings.data.train_split, settings.data.val_split
    unlike = class_check.compare(source, *splits, read=settings.data.on_device)
    if unlike is None:
        return
    if unlike.fix and _measures_classes(settings) and not step_folders.has_checkpoints(workdir):
        raise UserError(unlike.cause, unlike.fix)
    messages.say(f"WARNING: {unlike.cause}")


def _measures_classes(settings: Run) -> bool:
    """Whether the task evaluates by labels."""
    if isinstance(settings, Pretrain):
        return bool(settings.evals.every_epochs or settings.evals.final)
    return not isinstance(settings, Evaluate) or bool({"knn", "linear"} & set(settings.protocols))


def check_rate(settings: Pretrain) -> None:
    """Warns if `batch_size` is not that of the recipe's learning rates."""
    if settings.tuned_batch_size not in (0, settings.batch_size):
        command = command_line.with_batch(settings.batch_size, argument=True)
        messages.say(
            f"WARNING: the recipe's learning rates are tuned for a batch of {settings.tuned_batch_size},"
            f" not {settings.batch_size}; for its rates at this batch size, use"
            f" {command or f'--config=FILE.py:batch={settings.batch_size}'}"
        )


def check_warmup(settings: Pretrain) -> None:
    """Warns if the learning rates rise until the end of the run."""
    warmup, total = settings.optim.warmup_epochs, settings.total_epochs + settings.extend_epochs
    if warmup and warmup >= total:
        messages.say(
            f"WARNING: optim.warmup_epochs={warmup:g}, but the run has {messages.counted(total, 'epoch')}: the learning"
            " rates rise until its end and never fall; lower --config.optim.warmup_epochs"
        )


def check_devices(settings: Run, mesh: Mesh) -> None:
    """Refuses the wrong kind or number of devices; warns if JAX does not use an accelerator of this machine."""
    platform = jax.default_backend()
    extra = "cuda13" if settings.platform == "gpu" else settings.platform
    if settings.platform not in ("any", platform):
        raise UserError(
            f"config.platform={settings.platform!r}, but JAX runs on {platform!r}",
            "Set JAX_PLATFORMS=cpu."
            if settings.platform == "cpu"
            else f"Install JAX for it (pip install 'jax[{extra}]'), check that no"
            " other process holds the device (lsof /dev/accel* /dev/nvidia*) and that JAX_PLATFORMS is unset, or set"
            " --config.platform=any.",
        )
    if settings.devices and settings.devices != mesh.devices.size:
        raise UserError(
            f"config.devices={settings.devices}, but JAX has {messages.counted(mesh.devices.size, 'device')}",
            f"Set --config.devices={mesh.devices.size}, or make the missing devices visible.",
        )
    unused = [path for path in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0") if os.path.exists(path)]
    if platform == "cpu" and unused and not os.environ.get("JAX_PLATFORMS"):
        messages.say(
            f"WARNING: {unused[0]} is an accelerator, but JAX runs on the CPU; install JAX for it,"
            " or set JAX_PLATFORMS=cpu to use the CPU without this warning"
        )
