"""Converts epochs to steps."""

from typing import NamedTuple

import jax

from bt_jax.cli import command_line
from bt_jax.config.pretraining import Pretrain
from bt_jax.config.sections import Run
from bt_jax.messages import UserError


class Plan(NamedTuple):
    """The length of an epoch and of the run, in steps."""

    steps_per_epoch: int
    total_steps: int

    def steps(self, epochs: float) -> int:
        """Converts epochs to steps: at least one for any positive number of epochs."""
        return max(round(epochs * self.steps_per_epoch), 1) if epochs > 0 else 0


def make_plan(settings: Run, images: int) -> Plan:
    """The plan of a run; UserError if the data set is smaller than one batch."""
    steps_per_epoch = images // settings.batch_size
    if not steps_per_epoch:
        raise _too_few(settings, images)
    return Plan(steps_per_epoch, max(round((settings.total_epochs + settings.extend_epochs) * steps_per_epoch), 1))


def _too_few(settings: Run, images: int) -> UserError:
    """The error for too few images, with the largest batch that fits: a power of two on each device."""
    devices = jax.device_count()
    sizes = [devices * 2**power for power in range(32) if devices * 2**power <= images]
    fraction = getattr(settings.data, "fraction", 1)  # a key of fine-tuning alone
    share = f"a share of {fraction:g} of " if fraction != 1 else ""
    more = "a larger --config.data.fraction" if share else "more images"
    cause = f"{images} images in {share}{settings.data.train_split!r} do not fill one batch of {settings.batch_size}"
    if not sizes:
        return UserError(f"{cause}, nor the smallest batch for {devices} devices, which is {devices}", f"Use {more}.")
    tuned = isinstance(settings, Pretrain) and bool(settings.tuned_batch_size)
    command = command_line.with_batch(sizes[-1], argument=tuned)
    if not command:
        return UserError(cause, f"Use {more}, or set --config.batch_size={sizes[-1]}.")
    rates = " with the recipe's learning rates for that batch" if tuned else ""
    fix = f"Run {command} for a batch of {sizes[-1]}{rates}, or use {more}."
    if "=pretrain_folder" in command and settings.model.width == 1 and jax.default_backend() == "cpu":
        fix += " For a few hundred images on a CPU, add the argument small to the recipe: pretrain_folder:small."
    return UserError(cause, fix)
