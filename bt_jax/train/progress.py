"""The progress line: speed and remaining time."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from bt_jax.messages import counted

# The speed of the last windows gives the remaining time. A slow window hardly changes the mean of this many, and the
# mean still follows a lasting change.
WINDOWS = 20
# Steps are dispatched ahead of the device. Over a shorter time the number of dispatched steps does not give the speed.
SECONDS_AHEAD = 2


class Progress:
    """Pairs (or images) per second, waiting and remaining time, over the steps since the last line.

    The remaining time is that of the steps, at the speed of the last WINDOWS lines, plus that of the saves and
    evaluations. The estimate for a save or an evaluation is the time of the last one of its kind, less its compilation.
    Before the first evaluation the line names their number instead: "ETA 1:30 + 2 evaluations".

    Args:
      last_step: the step at which training ends; 0: `total_steps`.
      terms: metrics of the method, which follow the loss in the line.
      pauses_left: pauses_left(step) -> {kind of pause: number of such pauses to come}.
      compiled: compiled() -> seconds of compilation so far.
    """

    def __init__(
        self,
        *,
        first_step: int,
        total_steps: int,
        batch_size: int,
        steps_per_epoch: int,
        last_step: int = 0,
        unit: str = "pairs",
        terms: Sequence[str] = (),
        pauses_left: Callable[[int], Mapping[str, int]] = lambda step: {},
        compiled: Callable[[], float] = lambda: 0.0,
    ):
        self._unit, self._terms = unit, terms
        self._total, self._last = total_steps, last_step or total_steps
        self._batch, self._per_epoch = batch_size, steps_per_epoch
        self._compiled = compiled
        self._step, self._waited = first_step, 0.0
        self._time, self._compiled_before = time.monotonic(), compiled()
        self._windows: deque[tuple[int, float]] = deque(maxlen=WINDOWS)  # steps and their seconds
        self._pauses_left, self._pauses = pauses_left, dict[str, float]()  # kind -> seconds of the last

    def measure(self, step: int, *, waited: float = 0.0) -> dict[str, float]:
        """perf/pairs_per_sec (or images) and perf/data_wait (a share of the time) since the last call.

        The speed is missing if there were no steps since then. This happens if the first dispatch takes a whole window,
        because `skip` leaves its steps out.

        Args:
          waited: seconds spent waiting for data, since the start.
        """
        now = time.monotonic()
        seconds = max(now - self._time, 1e-9)
        values = {"epoch": step / self._per_epoch, "perf/data_wait": min((waited - self._waited) / seconds, 1.0)}
        if step > self._step:
            values[f"perf/{self._unit}_per_sec"] = (step - self._step) * self._batch / seconds
            self._windows.append((step - self._step, seconds))
        self._step, self._waited = step, waited
        self._time, self._compiled_before = now, self._compiled()
        return values

    def skip(self, step: int | None = None, *, pause: str = "") -> None:
        """Leaves the time since the last line, and its steps, out of the speed, because it was not all training.

        Args:
          step: the step reached in that time; None: there were no steps.
          pause: the kind of the pause. Its duration is the estimate for later pauses of this kind; "": no estimate.
        """
        now, compiled = time.monotonic(), self._compiled()
        if pause:
            self._pauses[pause] = max(now - self._time - (compiled - self._compiled_before), 0.0)
        self._time, self._compiled_before = now, compiled
        self._step = self._step if step is None else step

    def short_line(self, step: int) -> str:
        """The short text for the time between two lines of metrics."""
        seconds = time.monotonic() - self._time
        newest = (step - self._step, seconds) if seconds > SECONDS_AHEAD else (0, 0.0)
        speed = f"{newest[0] * self._batch / seconds:.0f} {self._unit}/s  " if newest[0] else ""
        place = f"step {step}/{self._total}  epoch {step / self._per_epoch:.1f}"
        return f"{place}  {speed}{self._eta(step, newest)}".rstrip()

    def line(self, step: int, values: dict[str, float]) -> str:
        """The text of a line of metrics."""
        rate = values.get(f"perf/{self._unit}_per_sec", 0.0)
        terms = ("loss", *self._terms, "probe_top1")
        losses = "  ".join(f"{name} {values[f'train/{name}']:.4g}" for name in terms if f"train/{name}" in values)
        speed = f"{rate:.0f} {self._unit}/s  " if rate else ""
        return (
            f"step {step}/{self._total}  epoch {values['epoch']:.1f}  {losses}"
            f"  {speed}waiting {100 * values['perf/data_wait']:.0f} %  {self._eta(step)}"
        ).rstrip()

    def _eta(self, step: int, newest: tuple[int, float] = (0, 0.0)) -> str:
        """The remaining time, such as "ETA 1:30"; "" until steps are timed."""
        seconds = self._seconds_left(step, newest)
        evaluations = 0 if "evaluation" in self._pauses else self._pauses_left(step).get("evaluation", 0)
        untimed = f" + {counted(evaluations, 'evaluation')}" if evaluations else ""
        return f"ETA {_clock(seconds)}{untimed}" if math.isfinite(seconds) else ""

    def _seconds_left(self, step: int, newest: tuple[int, float] = (0, 0.0)) -> float:
        steps, seconds = (sum(values) for values in zip(newest, *self._windows, strict=True))
        pauses = sum(count * self._pauses.get(kind, 0.0) for kind, count in self._pauses_left(step).items())
        if step >= self._last:
            return pauses
        return (self._last - step) * seconds / steps + pauses if steps else math.inf


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
