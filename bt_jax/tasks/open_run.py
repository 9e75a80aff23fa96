"""What every task opens before it works, in this order: the machine, the data, and at last the run folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import messages, sharding
from bt_jax.config import arguments, keys
from bt_jax.data import batches
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.broken import Broken
from bt_jax.messages import UserError
from bt_jax.run_folder import opening
from bt_jax.run_folder.checkpoints import Checkpoints
from bt_jax.train import epochs


class Data(NamedTuple):
    """The images of a task.

    Attributes:
      broken: records the unreadable ones.
      train_split: of `source`. It is not the config's if `select` took a part of it, or joined several.
    """

    source: Source
    broken: Broken
    feed: batches.Feed
    train_split: str


def open_machine(config: ConfigDict) -> Mesh:
    """The mesh over all devices.

    Raises:
      UserError: a value that no run can have, the wrong devices, or a batch that they cannot share.
    """
    keys.check(config)
    mesh = sharding.make_mesh()
    check_devices(config, mesh)
    if config.task != "evaluate":  # whose batches have another size
        check_rate(config)
        check_warmup(config)
        sharding.check_batch(config.batch_size, mesh)
    return mesh


def open_data(
    config: ConfigDict,
    mesh: Mesh,
    channels: int,
    select: Callable[[Source], tuple[Source, str]] | None = None,
) -> Data:
    """The data set of the config.

    Args:
      channels: of the images, 1 or 3.
      select: returns the data set to use instead and its training split, such as a share of the images. The config
        does not change.
    """
    source, broken = batches.open_data(config)
    source, train_split = select(source) if select else (source, config.data.train_split)
    feed = batches.make_feed(config, source, mesh, broken, channels, train_split)
    return Data(source, broken, feed, train_split)


def open_schedule(config: ConfigDict, data: Data) -> epochs.Plan:
    """Epochs as steps. Several processes compare them and their configs; UserError if they differ."""
    plan = epochs.make_plan(config, data.feed.images)
    opening.agree(config, images=data.feed.images, steps_per_epoch=plan.steps_per_epoch)
    return plan


def open_folder(config: ConfigDict, workdir: str, data: Data, about: str) -> Path:
    """The run folder. It is opened last, when everything else has been checked: a folder keeps its first config.

    Args:
      about: printed after the folder's name.
    """
    folder = opening.open_folder(workdir, arguments.to_dict(config))
    data.broken.list_in(opening.own(folder, "broken.txt"))
    messages.say(f"{folder}: {about}")
    return folder


def open_checkpoints(config: ConfigDict, folder: Path, plan: epochs.Plan, model: dict[str, Any]) -> Checkpoints:
    """The checkpoints of the run folder; `model` is what `load.read_model` reads from each."""
    keep_every = plan.steps(config.checkpoint.keep_every_epochs)
    return Checkpoints(folder, model=model, keep_last=config.checkpoint.keep_last, keep_every=keep_every)


def check_rate(config: ConfigDict) -> None:
    """Says so where the batch was changed and the learning rates, which the config file chose for another, were not."""
    if config.get("tuned_batch_size", 0) not in (0, config.batch_size):
        messages.say(
            f"WARNING: the learning rates are tuned for a batch of {config.tuned_batch_size}, not {config.batch_size}:"
            f" write --config=FILE.py:batch={config.batch_size} to take the config's rate for it"
        )


def check_warmup(config: ConfigDict) -> None:
    """Warns where the rates rise until the end of the run."""
    warmup, total = config.optim.get("warmup_epochs", 0.0), config.total_epochs + config.extend_epochs
    if warmup and warmup >= total:
        messages.say(
            f"WARNING: optim.warmup_epochs={warmup:g}, and the run has {total:g} epochs: the learning rates rise until"
            " its end and never fall; set --config.optim.warmup_epochs to less"
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
