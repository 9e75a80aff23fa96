"""The output of training: metrics, progress line, checkpoints, evaluations."""

import math
import time
from typing import Self

import jax
import numpy as np

from bt_jax.evals.base import Evaluator
from bt_jax.messages import Heartbeat, Ongoing, UserError
from bt_jax.processes import watchdog
from bt_jax.processes.stop_signals import StopSignals
from bt_jax.processes.watchdog import Phase
from bt_jax.run_folder import trackers
from bt_jax.run_folder.metrics_log import RunLog
from bt_jax.state import TrainState
from bt_jax.terminal import interrupts
from bt_jax.train import compile_time
from bt_jax.train.milestones import Milestones
from bt_jax.train.progress import Progress
from bt_jax.train.run import TrainingRun

Window = list[dict[str, jax.Array]]  # metrics of some steps, on the device


class Recorder:
    """Writes a run's metrics, checkpoints and evaluations; a context manager.

    The metrics of a window are read while the next window runs, because reading waits for the device. Metrics are on
    the disk before the checkpoint of their step starts: the log of a killed and resumed run lacks no line and repeats
    none. The speed leaves out saves, evaluations and the first dispatch, which compiles the step.

    Args:
      step: the first step.
    """

    def __init__(self, run: TrainingRun, step: int, milestones: Milestones) -> None:
        self._run, self._step, self._last = run, step, milestones.last
        options = run.settings.log
        self._log = RunLog(
            run.folder,
            first_step=step,
            tensorboard=options.tensorboard,
            trackers=trackers.start(run.folder, run.settings),
        )
        self._progress = Progress(
            first_step=step,
            total_steps=run.plan.total_steps,
            last_step=milestones.last,
            batch_size=run.settings.batch_size,
            steps_per_epoch=run.plan.steps_per_epoch,
            unit=run.unit,
            terms=run.terms,
            pauses_left=milestones.pauses_left,
            compiled=compile_time.so_far,
        )
        self._ongoing = Ongoing(milestones.last)
        self._compiling = Heartbeat(self._ongoing, lambda seconds: f"still compiling, {seconds} s")
        self._unread: tuple[int, Window, float] | None = None
        self._dispatched, self._opened, self._read = 0, time.monotonic(), compile_time.programs_read()
        self._key = compile_time.key(run.settings)

    def __enter__(self) -> Self:
        self._ongoing.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        """Ends the live line and closes the log, then waits for the last checkpoint."""
        self._compiling.stop()
        self._ongoing.__exit__()
        self._log.close(failed=kind is not None)
        watchdog.report_progress(self._step, Phase.SAVING)
        self._run.checkpoints.wait()

    def announce_compilation(self) -> None:
        """Says that the training step compiles, before the first step; says nothing if no step is left to train."""
        if self._step >= self._last:
            return
        seconds = compile_time.expected(self._key)
        wait = f"took {seconds:.0f} s before; less from the cache" if seconds else "takes seconds to minutes"
        self._ongoing.say(f"compiling the training step ({wait})")
        self._opened, self._read = time.monotonic(), compile_time.programs_read()
        self._compiling.start()

    def dispatched(self, step: int) -> None:
        """Records that the steps up to `step` are dispatched to the device; see `Batches.advance`."""
        self._dispatched += 1
        if self._dispatched == 1:
            self._compiling.stop()
            now = time.monotonic()
            interrupts.leave_next_to_handler()  # from here on the first Ctrl-C saves
            if compile_time.programs_read() == self._read:
                compile_time.remember(self._key, now - self._opened)
            self._progress.skip(step)
            self._ongoing.say(f"first step done {now - self._run.started:.0f} s after the start")
        else:
            self._ongoing.update(step, lambda: self._progress.short_line(step))

    def add(self, step: int, state: TrainState, metrics: Window, *, waited: float, wait: bool) -> None:
        """Takes the metrics of the window that ends at `step`, and writes those of the previous window.

        Args:
          state: the state after the window.
          waited: seconds that the run has waited for data so far.
          wait: True: wait for the device and write the metrics of this window too.

        Raises:
          UserError: `config.nonfinite_limit` steps in a row were not finite. The state is saved.
        """
        self._step, before, self._unread = step, self._unread, (step, metrics, waited)
        if before:
            self._write(*before, state)
        # On a CPU all steps of the window are done here. A later reading would time the next window instead.
        if wait or jax.default_backend() == "cpu":
            self.flush(state)

    def flush(self, state: TrainState) -> None:
        """Writes the metrics that are not read yet."""
        if self._unread:
            window, self._unread = self._unread, None
            self._write(*window, state)

    def finish(self, state: TrainState) -> None:
        """Writes the last metrics, and returns when all are on the disk."""
        self.flush(state)
        self._log.sync()

    def save(self, state: TrainState) -> None:
        """Starts a checkpoint, once the metrics are on the disk."""
        self._log.sync()
        self._run.checkpoints.save(state)
        self._progress.skip(pause="save")

    def evaluate(self, step: int, state: TrainState, evaluators: list[Evaluator], stop: StopSignals) -> None:
        """Runs evaluators and writes their values. A run of one process writes none after a stop signal.

        The next start then repeats the evaluators.

        Args:
          step: the step of the state.
        """
        values: dict[str, float] = {}
        for each in evaluators:
            watchdog.report_progress(step, Phase.EVALUATING, each.title)
            text = f"step {step}: evaluating ({each.title})"
            with Heartbeat(self._ongoing, lambda seconds, text=text: f"{text}, {seconds} s", done=step):
                values |= each.run(state)
            if stop.immediate:
                return
        self._log.write(step, values | {"epoch": step / self._run.plan.steps_per_epoch})
        self._ongoing.say("  ".join(f"{name} {_short(value)}" for name, value in values.items()))
        self._progress.skip(pause="evaluation")

    def _write(self, step: int, metrics: Window, waited: float, state: TrainState) -> None:
        values = _means(metrics) | self._progress.measure(step, waited=waited)
        watchdog.report_progress(self._step, Phase.TRAINING, waited=values["perf/data_wait"])
        self._log.write(step, values)
        self._ongoing.say(self._progress.line(step, values) + watchdog.slowest_line())
        if values["train/bad_steps"] >= self._run.settings.nonfinite_limit:
            self._give_up(step, values, state)

    def _give_up(self, step: int, values: dict[str, float], state: TrainState) -> None:
        if self._unread:  # the next window has run already: the state that is saved includes it
            later, metrics, _ = self._unread
            self._log.write(later, _means(metrics) | {"epoch": later / self._run.plan.steps_per_epoch})
        self.save(state)
        raise _not_finite(step, values, self._run.settings.model.dtype)


def _short(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _means(window: Window) -> dict[str, float]:
    """The means over a window; the maximum for the count of bad steps."""
    fetched = jax.device_get(window)
    values = {name: np.concatenate([np.atleast_1d(m[name]) for m in fetched]) for name in fetched[0]}
    return {name: float(v.max() if name == "train/bad_steps" else v.mean()) for name, v in values.items()}


def _not_finite(step: int, values: dict[str, float], dtype: str) -> UserError:
    named = sorted((name for name in values if name.startswith("train/lr_")), reverse=True)
    rates = {name.removeprefix("train/lr_"): values[name] for name in named}
    keys = " or ".join(f"--config.optim.lr_{name}" for name in rates)
    return UserError(
        f"The loss or gradient was not finite in {values['train/bad_steps']:.0f} steps in a row before step {step}"
        f" (learning rates: {', '.join(f'{name} {rate:.3g}' for name, rate in rates.items())})",
        f"Start again in a new --workdir with a lower {keys}"
        f"{'' if dtype == 'float32' else ', or with --config.model.dtype=float32'}."
        " Those steps changed nothing, and the state is saved.",
    )
