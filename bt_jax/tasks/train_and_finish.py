"""The common end of the tasks that train."""

from collections.abc import Callable
from pathlib import Path

from bt_jax.report import write
from bt_jax.state import TrainState
from bt_jax.train import loop
from bt_jax.train.run import TrainingRun


def train_and_finish(run: TrainingRun, state: TrainState, finish: Callable[[TrainState], None]) -> Path:
    """Trains from the newest checkpoint, or from `state` if there is none; returns the run folder.

    Args:
      finish: finish(state) evaluates the last state and writes the results. It is called at the end of the schedule,
        unless the results of that step are there.
    """
    state = loop.train(run, loop.resume_or(run, state))
    step = int(state.step)
    if step == run.plan.total_steps and not write.has_results(run.folder, step):
        finish(state)
    run.checkpoints.close()
    return run.folder
