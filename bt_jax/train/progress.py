"""The progress line: speed and time to go."""

import math
import time
from collections.abc import Sequence


class Progress:
    """Pairs (or images) per second, waiting and time to go, over the steps since the last line.

    Args:
      terms: metrics of the method that the line has after the loss.
    """

    def __init__(
        self,
        *,
        first_step: int,
        total_steps: int,
        batch_size: int,
        steps_per_epoch: int,
        unit: str = "pairs",
        terms: Sequence[str] = (),
    ):
        self._unit, self._terms = unit, terms
        self._total, self._batch, self._per_epoch = total_steps, batch_size, steps_per_epoch
        self._first, self._step = first_step, first_step
        self._time, self._waited = time.monotonic(), 0.0

    def measure(self, step: int, *, waited: float = 0.0) -> dict[str, float]:
        """perf/pairs_per_sec (or images) and perf/data_wait (a share of the time) since the last call.

        Without steps since then, as after a first dispatch that is a whole window, there is no speed.

        Args:
          waited: seconds spent waiting for data, since the start.
        """
        now = time.monotonic()
        seconds = max(now - self._time, 1e-9)
        values = {"epoch": step / self._per_epoch, "perf/data_wait": min((waited - self._waited) / seconds, 1.0)}
        if step > self._step:
            values[f"perf/{self._unit}_per_sec"] = (step - self._step) * self._batch / seconds
        self._step, self._time, self._waited = step, now, waited
        return values

    def skip(self, step: int | None = None) -> None:
        """Leaves the time since the last line out of the speed: it was not training; nor do its steps count.

        Args:
          step: the step that is reached, if there were steps in that time.
        """
        self._time, self._step = time.monotonic(), self._step if step is None else step

    def short_line(self, step: int) -> str:
        """The text of a line between two lines of metrics."""
        seconds = time.monotonic() - self._time
        rate = (step - self._step) * self._batch / seconds if seconds > 0 else 0.0
        eta = (self._total - step) * self._batch / rate if rate else math.inf
        epoch = step / self._per_epoch
        return f"step {step}/{self._total}  epoch {epoch:.1f}  {rate:.0f} {self._unit}/s  ETA {_clock(eta)}"

    def line(self, step: int, values: dict[str, float]) -> str:
        """The text of the line."""
        rate = values.get(f"perf/{self._unit}_per_sec", 0.0)
        eta = (self._total - step) * self._batch / rate if rate else math.inf
        terms = ("loss", *self._terms, "probe_top1")
        losses = "  ".join(f"{name} {values[f'train/{name}']:.4g}" for name in terms if f"train/{name}" in values)
        speed, waiting = f"{rate:.0f}" if rate else "?", 100 * values["perf/data_wait"]
        return (
            f"step {step}/{self._total}  epoch {values['epoch']:.1f}  {losses}"
            f"  {speed} {self._unit}/s  waiting {waiting:.0f} %  ETA {_clock(eta)}"
        )


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
