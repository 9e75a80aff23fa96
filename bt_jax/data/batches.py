"""The images of a run as the training loop sees them: a `Feed`, whose `Batches` take the training steps.

`device.ResidentFeed` and `streamed.StreamedFeed` are the two kinds; the loop need not know which one it has.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, Self

import jax
import numpy as np

from bt_jax.processes import watchdog
from bt_jax.processes.stop_signals import StopSignals
from bt_jax.processes.watchdog import Phase
from bt_jax.state import TrainState

Step = Callable  # step(state, batch) -> (state, metrics), not yet jitted
SECONDS_TO_STOP = 5  # of training after a signal; a preempted machine is gone after 30


class Advance(NamedTuple):
    """The result of `Batches.advance`.

    Attributes:
      steps: how many were taken.
      metrics: of the steps, on the device: name -> scalar or (steps,), a dict for each dispatch.
    """

    state: TrainState
    steps: int
    metrics: list[dict[str, jax.Array]]


class Batches:
    """Takes training steps on batch after batch, from the state's step on; a context manager.

    Attributes:
      wait_seconds: time spent waiting for data.
    """

    wait_seconds = 0.0

    def __init__(self, first_step: int) -> None:
        self._at, self._seconds, self._timed = first_step, 0.0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends what reads ahead."""

    def advance(
        self, state: TrainState, steps: int, stop: StopSignals, dispatched: Callable[[int], None] = lambda step: None
    ) -> Advance:
        """Takes steps; stops early if a stop signal comes and the rest would last more than SECONDS_TO_STOP.

        With several processes it takes all of them: the others take the same steps.

        Args:
          steps: the number of steps, at least 1; they do not cross the end of an epoch.
          dispatched: called with the step that is reached, after each dispatch.
        """
        left, metrics = steps, []
        while left and not (metrics and stop.immediate and self._estimate(left) > SECONDS_TO_STOP):
            began = time.monotonic()
            with jax.transfer_guard_host_to_device("disallow"):  # only the batch is put there, on purpose
                state, new, taken = self.dispatch(state, left)
            if metrics or self._timed:  # the first dispatch has the compiler's time in it
                self._seconds, self._timed = self._seconds + time.monotonic() - began, self._timed + taken
            metrics.append(new)
            left, self._at = left - taken, self._at + taken
            watchdog.at(self._at, Phase.TRAINING)
            dispatched(self._at)
        return Advance(state, steps - left, metrics)

    def _estimate(self, steps: int) -> float:
        """The expected seconds of a number of steps, by those timed so far; 0 if there are none."""
        return steps * self._seconds / max(self._timed, 1)

    def dispatch(self, state: TrainState, most: int) -> tuple[TrainState, dict[str, jax.Array], int]:
        """Gives the device up to `most` steps; returns the state, their metrics and their number."""
        raise NotImplementedError


class Feed(Protocol):
    """The images of a run.

    Attributes:
      images: how many training images there are.
    """

    images: int

    def batches(self, step: Step, state: TrainState) -> Batches:
        """Batches from the state's step on."""
        ...

    def window(self, at_step: int) -> int:
        """Steps from `at_step` to the next one at which the loop should read metrics."""
        ...

    def sample(self, n: int) -> dict[str, np.ndarray]:
        """A batch of n training images, evenly spaced."""
        ...

    def passes(self, split: str, limit: int) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
        """A function that starts a pass over a split for evaluation: padded batches with a "mask".

        Args:
          limit: number of images; 0: all.
        """
        ...
