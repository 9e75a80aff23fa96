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

        Args:
          waited: seconds spent waiting for data, since the start.
        """
        now = time.monotonic()
        seconds = max(now - self._time, 1e-9)
        values = {
            "epoch": step / self._per_epoch,
            f"perf/{self._unit}_per_sec": (step - self._step) * self._batch / seconds,
            "perf/data_wait": (waited - self._waited) / seconds,
        }
        self._step, self._time, self._waited = step, now, waited
        return values

    def skip(self) -> None:
        """Leaves the time since the last line out of the speed: it was not training."""
        self._time = time.monotonic()

    def line(self, step: int, values: dict[str, float]) -> str:
        """The text of the line."""
        rate = values[f"perf/{self._unit}_per_sec"]
        eta = (self._total - step) * self._batch / rate if rate else math.inf
        terms = ("loss", *self._terms, "probe_top1")
        losses = "  ".join(f"{name} {values[f'train/{name}']:.4g}" for name in terms if f"train/{name}" in values)
        return (
            f"step {step}/{self._total}  epoch {values['epoch']:.1f}  {losses}"
            f"  {rate:.0f} {self._unit}/s  waiting {100 * values['perf/data_wait']:.0f} %  ETA {_clock(eta)}"
        )


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
