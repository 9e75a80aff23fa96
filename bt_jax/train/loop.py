"""The training loop: windows of steps to the end of a schedule, with evaluators, checkpoints and a way to stop."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bt_jax import messages
from bt_jax.data import batches
from bt_jax.evals.base import Evaluator
from bt_jax.messages import UserError
from bt_jax.processes import coordination, watchdog
from bt_jax.processes.stop_signals import Stop, Stopped
from bt_jax.run_folder import metrics_log
from bt_jax.run_folder.checkpoints import Checkpoints
from bt_jax.state import TrainState
from bt_jax.train import epochs, recorder

AT_THE_END = "judging (at the end)"
SECONDS_TO_STOP = 5  # of training after a signal; a preempted machine is gone after 30


class Loop(NamedTuple):
    """All that does not change while a run trains.

    Attributes:
      step: step(state, batch) -> (state, metrics), not yet jitted.
      started: `time.monotonic()` when the program began.
      unit: what a batch is made of, for the speed that is shown.
      terms: metrics of the loss that the progress line shows beside it.
    """

    config: ConfigDict
    folder: Path
    plan: epochs.Plan
    step: Callable
    feed: batches.Feed
    evaluators: Sequence[Evaluator]
    checkpoints: Checkpoints
    started: float
    unit: str = "pairs"
    terms: Sequence[str] = ()


def resume_or(this: Loop, fresh: TrainState) -> TrainState:
    """The newest checkpoint's state, laid out as `fresh`, or `fresh` itself where there is none."""
    newest = this.checkpoints.latest()
    if newest is None:
        return fresh
    messages.say(f"going on from step {newest} of {this.plan.total_steps}")
    return this.checkpoints.restore(fresh, newest)


def train(this: Loop, state: TrainState) -> TrainState:  # noqa: C901 - to be cut into a schedule and a recorder
    """Trains to the end of the schedule or to `config.stop_after_steps`; the host looks at one window while the next
    runs.

    What metrics.jsonl says up to a step is on the disk before that step is saved, and it is saved before it is judged:
    whenever the run dies, the next start misses no line and writes none twice. What comes after the last step is a
    judgement, for `watchdog`.
    """
    config, plan = this.config, this.plan
    at = int(state.step)
    last = min(config.stop_after_steps or plan.total_steps, plan.total_steps)
    save_every = plan.steps(config.checkpoint.every_epochs)
    stops = [every for every in (save_every, *(each.every_steps for each in this.evaluators)) if every]

    def judges() -> list[Evaluator]:
        """Whose turn it is."""
        return [each for each in this.evaluators if each.every_steps and (at == last or _due(at, each.every_steps))]

    judged = coordination.gather(metrics_log.judged(this.folder, at), what="the start of training")[0]
    unjudged = at > 0 and bool(judges()) and not judged
    if at >= last and not unjudged:
        messages.say(f"nothing to train: step {at} of {last} is reached; see {this.folder}")
        watchdog.at(at, AT_THE_END)
        return state
    written = metrics_log.RunLog(this.folder, first_step=at, tensorboard=config.log.tensorboard)
    progress = recorder.Progress(
        first_step=at,
        total_steps=last,
        batch_size=config.batch_size,
        steps_per_epoch=plan.steps_per_epoch,
        unit=this.unit,
        terms=this.terms,
    )
    # A window may be taken in parts, to notice a signal early, where no other process must take the same ones, and
    # where a part is no program of its own to compile.
    parts = not coordination.several() and (jax.default_backend() == "cpu" or not config.data.on_device)
    advance, waited, close = this.feed.begin(this.step, state)
    stop = Stop(at)
    unseen = None  # the newest window's metrics, still on their way from the device
    first, speed = True, math.inf  # speed: steps a second

    def look(window):
        nonlocal first, speed
        step, shown = window
        values = _means(shown) | progress.measure(step, waited=waited())
        watchdog.at(step, "training", waited=values["perf/data_wait"])
        written.write(step, values)
        if not first:  # which has the compiler's time in it
            speed = values[f"perf/{this.unit}_per_sec"] / config.batch_size
        else:
            messages.say(f"first window of steps done {time.monotonic() - this.started:.0f} s after the start")
            first = False
        messages.say(progress.line(step, values) + watchdog.slowest_line())
        if values["train/bad_steps"] >= config.nonfinite_limit:
            if unseen and unseen[0] > step:  # a window that ran meanwhile, and is in the state that is saved
                written.write(unseen[0], _means(unseen[1]) | {"epoch": unseen[0] / plan.steps_per_epoch})
            written.sync()
            this.checkpoints.save(state)
            raise _not_finite(step, values)

    def judge():
        values: dict[str, float] = {}
        for each in judges():
            watchdog.at(at, f"judging ({type(each).__name__})")
            values |= each.run(state)
            if stop.now:  # the next start judges this step
                return
        written.write(at, values | {"epoch": at / plan.steps_per_epoch})
        messages.say("  ".join(f"{name} {_shown(value)}" for name, value in values.items()))

    try:
        if unjudged:
            judge()
            progress.skip()
        while at < last:
            window = min([this.feed.window(at), last - at] + [every - at % every for every in stops])
            if stop.before(at, at + window):
                break
            shown = []
            while window and not (shown and stop.now and window > speed * SECONDS_TO_STOP):
                steps = min(window, max(int(speed * SECONDS_TO_STOP), 1)) if parts and speed < math.inf else window
                with jax.transfer_guard_host_to_device("disallow"):  # but what is put there on purpose: the batch
                    state, metrics = advance(state, steps)
                shown += metrics
                at, window = at + steps, window - steps
                watchdog.at(at, "training")
            before, unseen = unseen, (at, shown)
            if before:
                look(before)
            saving, judging = at == last or _due(at, save_every), bool(judges())
            # On a CPU the steps run while they are dispatched: looking later would time the wrong window.
            if saving or judging or jax.default_backend() == "cpu":
                look(unseen)
                unseen = None
            if saving:
                written.sync()
                this.checkpoints.save(state)
            if judging and not stop.now:
                judge()
            if saving or judging:
                progress.skip()
        if unseen:
            look(unseen)
        stopped = stop.after_all()
        written.sync()
        if stopped:
            this.checkpoints.save(state)
    finally:
        close()
        written.close()
        watchdog.at(at, "saving")
        this.checkpoints.wait()
        stop.close(at)
    if stopped:
        messages.say(f"stopped at step {at} of {last}, saved; the same command goes on from there")
        raise Stopped(128 + stop.signal)
    watchdog.at(at, AT_THE_END)
    return state


def _due(at: int, every: int) -> bool:
    return bool(every) and at % every == 0


def _shown(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _means(shown: list[dict[str, jax.Array]]) -> dict[str, float]:
    """Means over a window; of a count of bad steps the largest."""
    fetched = jax.device_get(shown)
    values = {name: np.concatenate([np.atleast_1d(m[name]) for m in fetched]) for name in fetched[0]}
    return {name: float(v.max() if name == "train/bad_steps" else v.mean()) for name, v in values.items()}


def _not_finite(step: int, values: dict[str, float]) -> UserError:
    named = sorted((name for name in values if name.startswith("train/lr_")), reverse=True)
    rates = {name.removeprefix("train/lr_"): values[name] for name in named}
    keys = " or ".join(f"--config.optim.lr_{name}" for name in rates)
    return UserError(
        f"Loss or gradient not finite in {values['train/bad_steps']:.0f} steps in a row before step {step}"
        f" (learning rates: {', '.join(f'{name} {rate:.3g}' for name, rate in rates.items())})",
        f"Those steps changed nothing and the state is saved. Lower {keys}, or try --config.model.dtype=float32, in a"
        " new --workdir.",
    )
