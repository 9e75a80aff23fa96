"""Epochs as steps."""

from typing import NamedTuple

from bt_jax.config.sections import Run
from bt_jax.messages import UserError


class Plan(NamedTuple):
    """Epochs as steps."""

    steps_per_epoch: int
    total_steps: int

    def steps(self, epochs: float) -> int:
        """At least one step for any positive number of epochs."""
        return max(round(epochs * self.steps_per_epoch), 1) if epochs > 0 else 0


def make_plan(settings: Run, images: int) -> Plan:
    """Raises UserError where the data set is smaller than one batch."""
    steps_per_epoch = images // settings.batch_size
    if not steps_per_epoch:
        fraction = getattr(settings.data, "fraction", 1)  # of fine-tuning
        share = f"a share of {fraction:g} of " if fraction != 1 else ""
        also = " or a larger --config.data.fraction" if share else ""
        raise UserError(
            f"{images} images in {share}{settings.data.train_split!r} do not fill one batch of {settings.batch_size}",
            f"Set a smaller --config.batch_size{also}.",
        )
    return Plan(steps_per_epoch, max(round((settings.total_epochs + settings.extend_epochs) * steps_per_epoch), 1))
