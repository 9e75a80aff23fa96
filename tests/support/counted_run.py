"""The training loop with a step that only counts, and a record of the events in their order."""

import json
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from bt_jax.config import keys
from bt_jax.data.batches import Batches
from bt_jax.messages import UserError
from bt_jax.processes.stop_signals import Stopped
from bt_jax.run_folder import metrics_log
from bt_jax.train import epochs, loop
from bt_jax.train.run import TrainingRun


class State(NamedTuple):
    step: int


class CountingEvaluator:
    """An evaluator that records its evaluations."""

    def __init__(self, name, every_steps, events):
        self.name, self.title, self.every_steps, self._events = name, f"{name} counted", every_steps, events

    def run(self, state):
        self._events.append(f"{self.name} {state.step}")
        self.during(state.step)
        return {f"val/{self.name}": 1.0}

    def during(self, step):
        """Does nothing; a test replaces this method to act during an evaluation."""


def run(
    folder,
    monkeypatch,
    *,
    at=0,
    window=2,
    every=3,
    bad=lambda step: 0,
    before_step=lambda step: None,
    during=lambda step: None,
    in_save=lambda step: None,
    events=None,
    **values,
):
    """Trains ten steps, five per epoch; saves at steps 4 and 8 and evaluates at steps 3, 6 and 9.

    Args:
      bad: bad(step) -> number of steps in a row whose loss or gradient was not finite.
      before_step, during, in_save: callbacks with the step: before it, in its evaluation, and in its save.
      events: the list that gets the events; None: a new list.

    Returns:
      The events in their order.
    """
    events = [] if events is None else events
    config = keys.pretrain()
    values = {"checkpoint.every_epochs": 0.8, "total_epochs": 2.0, "log.tensorboard": False} | values
    with config.unlocked():
        config.update_from_flattened_dict(values)

    class Counted(Batches):
        def dispatch(self, state, most):
            before_step(state.step + 1)
            loss = {"train/loss": np.float32(state.step + 1), "train/bad_steps": bad(state.step + 1)}
            return State(state.step + 1), loss | {"train/lr_weights": 0.25}, 1

        def close(self):
            events.append("closed")

    feed = SimpleNamespace(batches=lambda step, state: Counted(state.step), window=lambda at: window - at % window)
    checkpoints = SimpleNamespace(
        save=lambda state: events.append(f"save {state.step}") or in_save(state.step),
        wait=lambda: events.append("wait"),
        latest=lambda: None,
    )
    sync = metrics_log.RunLog.sync
    monkeypatch.setattr(
        metrics_log.RunLog, "sync", lambda self: events.append(f"sync {lines(folder)[-1]['step']}") or sync(self)
    )
    evaluators = [CountingEvaluator("often", every, events), CountingEvaluator("never", 0, events)]
    evaluators[0].during = during
    training_run = TrainingRun(config, folder, epochs.Plan(5, 10), None, None, None, feed, evaluators, checkpoints, 0.0)
    try:
        loop.train(training_run, State(at))
    except (UserError, Stopped) as error:
        events.append(error)
    return events


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
