"""The constant parts of a training run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bt_jax.config.sections import Run
from bt_jax.data.batches import Feed, Step
from bt_jax.evals.base import Evaluator
from bt_jax.run_folder.checkpoints import Checkpoints
from bt_jax.state import TrainState
from bt_jax.train.epochs import Plan


class TrainingRun(NamedTuple):
    """A run: its settings, its images, its initial state and its step, and what it writes to.

    Attributes:
      create: create() -> the state at step 0.
      like: like() -> its shapes, dtypes and shardings, as jax.ShapeDtypeStruct.
      step: step(state, batch) -> (state, metrics), not yet jitted.
      started: `time.monotonic()` when the program began.
      unit: the name of one element of a batch, in the speed of the progress line.
      terms: metrics that the progress line shows after the loss.
    """

    settings: Run
    folder: Path
    plan: Plan
    create: Callable[[], TrainState]
    like: Callable[[], TrainState]
    step: Step
    feed: Feed
    evaluators: Sequence[Evaluator]
    checkpoints: Checkpoints
    started: float
    unit: str = "pairs"
    terms: Sequence[str] = ()
