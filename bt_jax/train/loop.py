"""The training loop: steps to the end of a schedule, with checkpoints, evaluations and a way to stop."""

from bt_jax import messages
from bt_jax.processes import coordination, watchdog
from bt_jax.processes.stop_signals import Stopped, StopSignals
from bt_jax.processes.watchdog import Phase
from bt_jax.run_folder import metrics_log
from bt_jax.state import TrainState
from bt_jax.train.milestones import Milestones
from bt_jax.train.recorder import Recorder
from bt_jax.train.run import TrainingRun


def initial_or_newest(run: TrainingRun) -> TrainState:
    """The newest checkpoint's state, or the state at step 0 if there is none."""
    newest = run.checkpoints.latest()
    if newest is None:
        with messages.during("compiling the initial weights"):
            return run.create()
    messages.say(f"resuming from step {newest} of {run.plan.total_steps}")
    return run.checkpoints.restore(run.like(), newest)


def train(run: TrainingRun, state: TrainState) -> TrainState:
    """Trains to the end of the schedule, to `config.stop_after_steps`, or until a signal asks to stop.

    Raises:
      Stopped: a signal came. The state is saved.
      UserError: too many steps in a row were not finite. The state is saved.
    """
    step, milestones = int(state.step), _milestones(run)
    owed = _owed_evaluation(run, milestones, step)
    if step >= milestones.last and not owed:
        messages.say(
            f"nothing to train: the run has reached step {step} of {run.plan.total_steps}{_why_stop(run, milestones)}"
        )
        watchdog.report_progress(step, Phase.EVALUATING, "at the end")
        return state
    with (
        StopSignals(step) as stop,
        Recorder(run, step, milestones) as recorder,
        run.feed.batches(run.step, state) as batches,
    ):
        if owed:
            recorder.evaluate(step, state, milestones.due(step), stop)
        recorder.announce_compilation()
        while step < milestones.last:
            until = milestones.next(step)
            if stop.requested_before(step, until):
                break
            state, taken, metrics = batches.advance(state, until - step, stop, recorder.dispatched)
            step += taken
            recorder.add(step, state, metrics, waited=batches.wait_seconds, wait=milestones.any(step))
            if milestones.saves(step):
                recorder.save(state)
            if milestones.due(step) and not stop.immediate:
                recorder.evaluate(step, state, milestones.due(step), stop)
        recorder.finish(state)
        stopped = stop.requested_anywhere()
        if stopped:
            recorder.save(state)
    if stopped:
        messages.say(f"stopped and saved at step {step} of {run.plan.total_steps}; run the same command to resume")
        raise Stopped(128 + stop.signal)
    if milestones.last < run.plan.total_steps:
        messages.say(f"stopped and saved at step {step} of {run.plan.total_steps}{_why_stop(run, milestones)}")
    watchdog.report_progress(step, Phase.EVALUATING, "at the end")
    return state


def _milestones(run: TrainingRun) -> Milestones:
    last = min(run.settings.stop_after_steps or run.plan.total_steps, run.plan.total_steps)
    return Milestones(last, run.plan.steps(run.settings.checkpoint.every_epochs), run.evaluators, run.feed.window)


def _why_stop(run: TrainingRun, milestones: Milestones) -> str:
    """The key that ends training before the schedule does, and how to resume; "" at the end of the schedule."""
    if milestones.last == run.plan.total_steps:
        return ""
    key = f"--config.stop_after_steps={run.settings.stop_after_steps}"
    return f" ({key}); to resume, leave that key out or raise it"


def _owed_evaluation(run: TrainingRun, milestones: Milestones, step: int) -> bool:
    """Whether an earlier start saved this step but ended before its evaluation. All processes call this together."""
    done = coordination.gather(metrics_log.evaluated(run.folder, step), barrier="the start of training")[0]
    return step > 0 and bool(milestones.due(step)) and not done
