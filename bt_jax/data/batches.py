"""The interface of the training loop to its images: a `Feed`, whose `Batches` take the training steps.

`device.ResidentFeed` and `streamed.StreamedFeed` are the two kinds. The loop uses either in the same way.
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
SECONDS_TO_STOP = 5  # of training after a signal; a preempted machine stops after 30


class Advance(NamedTuple):
    """The result of `Batches.advance`.

    Attributes:
      steps: number of steps taken.
      metrics: of the steps, on the device: one dict per dispatch, name -> scalar or (steps,).
    """

    state: TrainState
    steps: int
    metrics: list[dict[str, jax.Array]]


class Batches:
    """Takes training steps on successive batches, from the state's step on; a context manager.

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
        """Stops reading ahead."""

    def advance(
        self, state: TrainState, steps: int, stop: StopSignals, dispatched: Callable[[int], None] = lambda step: None
    ) -> Advance:
        """Takes steps. After a stop signal it stops early if the rest would last more than SECONDS_TO_STOP.

        In a multi-process run it always takes all steps, because the other processes take the same ones. On a CPU it
        waits for every dispatch: JAX queues up to 32, so that times and progress would be those of the queue, and a
        signal would have to wait for all of them.

        Args:
          steps: number of steps, at least 1; they do not cross the end of an epoch.
          dispatched: called after each dispatch, on a CPU when it is done, with the number of the last step.
        """
        left, metrics = steps, []
        while left and not (metrics and stop.immediate and self._estimate(left) > SECONDS_TO_STOP):
            began = time.monotonic()
            with jax.transfer_guard_host_to_device("disallow"):  # nothing but the batch, which is put explicitly
                state, new, taken = self.dispatch(state, left)
                if jax.default_backend() == "cpu":
                    jax.block_until_ready(new)
            if metrics or self._timed:  # the time of the first dispatch includes compilation
                self._seconds, self._timed = self._seconds + time.monotonic() - began, self._timed + taken
            metrics.append(new)
            left, self._at = left - taken, self._at + taken
            watchdog.report_progress(self._at, Phase.TRAINING)
            dispatched(self._at)
        return Advance(state, steps - left, metrics)

    def _estimate(self, steps: int) -> float:
        """Expected duration of a number of steps in seconds, from the steps timed so far; 0 if there are none."""
        return steps * self._seconds / max(self._timed, 1)

    def dispatch(self, state: TrainState, most: int) -> tuple[TrainState, dict[str, jax.Array], int]:
        """Dispatches up to `most` steps to the device; returns the state, their metrics and their number."""
        raise NotImplementedError


class Feed(Protocol):
    """The images of a run.

    Attributes:
      images: number of training images.
    """

    images: int

    def batches(self, step: Step, state: TrainState) -> Batches:
        """Returns the batches from the state's step on."""
        ...

    def window(self, at_step: int) -> int:
        """Number of steps from `at_step` to the next step at which the loop should read metrics."""
        ...

    def sample(self, n: int) -> dict[str, np.ndarray]:
        """Returns a batch of n evenly spaced training images."""
        ...

    def passes(self, split: str, limit: int) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
        """Returns a function that starts a pass over a split for evaluation: padded batches with a "mask".

        Args:
          limit: number of images; 0: all of them.
        """
        ...
