"""The common end of the tasks that train."""

from collections.abc import Callable
from pathlib import Path

from bt_jax import messages
from bt_jax.report import write
from bt_jax.state import TrainState
from bt_jax.train import loop
from bt_jax.train.run import TrainingRun


def train_and_finish(run: TrainingRun, finish: Callable[[TrainState], None]) -> Path:
    """Trains from the newest checkpoint, or from step 0 if there is none; returns the run folder.

    Args:
      finish: finish(state) evaluates the last state and writes the results. It is called at the end of the schedule,
        but not if the run was finished before this start.
    """
    state = loop.initial_or_newest(run)
    first, state = int(state.step), loop.train(run, state)
    step = int(state.step)
    has_results = write.has_results(run.folder, step)
    if step == run.plan.total_steps and not (has_results and step == first):
        finish(state)
    elif has_results:
        messages.say(f"report      {run.folder / write.PAGE}")
    run.checkpoints.close()
    messages.say(f"checkpoint  {run.folder / 'checkpoints' / str(step)}\nmetrics     {run.folder / 'metrics.jsonl'}")
    return run.folder
