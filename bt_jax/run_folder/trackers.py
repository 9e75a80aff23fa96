"""Experiment trackers: Weights & Biases and MLflow get the lines of metrics.jsonl too.

Each tracker has a thread, which also imports its package and opens its run. Thus a slow or unreachable server delays no
step, and its errors give one warning. RUN/trackers.json keeps the id of the tracker's run, so that a resumed run
continues it. Values that a killed run has sent already are not sent again (`metrics_log`).
"""

import importlib.util
import logging
import queue
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import jax

from bt_jax import messages, storage
from bt_jax.config import arguments
from bt_jax.config.sections import Log, Run
from bt_jax.messages import UserError, line

NAME = "trackers.json"
SECONDS_TO_CLOSE = 30  # time limit for sending the last lines
PARAMS_AT_ONCE, PARAM_CHARACTERS = 100, 500  # limits of MLflow's servers (mlflow/utils/validation.py)

Values = Mapping[str, float]


class Session(Protocol):
    """An open run of a tracker. Only the thread of the tracker uses it."""

    def write(self, step: int, values: Values, seconds: float) -> None:
        """Sends metrics of a step; `seconds`: time of writing, in seconds since 1970."""
        ...

    def close(self, *, failed: bool) -> None:
        """Sends the rest and marks the run as ended."""
        ...


def check(options: Log) -> None:
    """Raises UserError if the package of a tracker is missing."""
    for key, package in (("wandb", options.wandb), ("mlflow", options.mlflow)):
        if package and jax.process_index() == 0 and importlib.util.find_spec(key) is None:
            raise UserError(
                f"config.log.{key}={package!r} needs the package {key}, which is not installed",
                f"Run pip install {key}, or leave out --config.log.{key}.",
            )


def start(folder: Path, settings: Run) -> list["Tracker"]:
    """Starts the trackers of the config. Only the first process has any."""
    options = settings.log
    wanted = {"wandb": (options.wandb, _WandB), "mlflow": (options.mlflow, _MLflow)}
    if jax.process_index():
        return []
    return [Tracker(name, place, opens, folder, settings) for name, (place, opens) in wanted.items() if place]


class Tracker:
    """Sends metrics to a tracker, in a thread. The first error ends it with a warning.

    Attributes:
      resumed: whether an earlier start has opened the tracker's run.
    """

    def __init__(self, name: str, place: str, opens: Callable[..., Session], folder: Path, settings: Run) -> None:
        self._name, self._place, self._opens, self._folder, self._settings = name, place, opens, folder, settings
        known = _read(folder).get(name, {})
        self._run = known.get("run", "") if known.get("place") == place else ""
        self.resumed = bool(self._run)
        self._lines: queue.SimpleQueue[tuple[int, Values, float] | bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name=name, daemon=True)
        self._thread.start()

    def write(self, step: int, values: Values) -> None:
        """Hands metrics to the thread."""
        self._lines.put((step, dict(values), time.time()))

    def close(self, *, failed: bool = False) -> None:
        """Waits until everything is sent, for SECONDS_TO_CLOSE at most.

        Args:
          failed: the run ended with an error.
        """
        self._lines.put(failed)
        self._thread.join(SECONDS_TO_CLOSE)
        if self._thread.is_alive():
            self._warn(f"no answer for {SECONDS_TO_CLOSE} s; the last values may be missing there")

    def _send(self) -> None:
        try:
            session = self._opens(self._place, self._run, self._folder, self._settings, self._keep)
            while not isinstance(item := self._lines.get(), bool):
                session.write(*item)
            session.close(failed=item)
        except Exception as error:  # the packages have no common base class for the errors of servers
            self._warn(f"{line(error, 200).rstrip('.')}; the run continues without this tracker")

    def _warn(self, why: str) -> None:
        messages.say(f"WARNING: {self._name} ({self._place}): {why}")

    def _keep(self, run: str) -> None:
        storage.write_json(self._folder / NAME, _read(self._folder) | {self._name: {"place": self._place, "run": run}})


def _read(folder: Path) -> dict[str, dict[str, str]]:
    try:
        return storage.read_json(folder / NAME) or {}
    except ValueError:  # damaged: a new run of the tracker begins
        return {}


class _WandB:
    """A run of Weights & Biases in the project `place`. Settings of W&B in the environment apply (WANDB_MODE, ...)."""

    def __init__(self, place: str, run: str, folder: Path, settings: Run, keep: Callable[[str], None]) -> None:
        import wandb

        run = run or secrets.token_hex(8)
        keep(run)  # before the server knows the id, so that a killed run can continue it
        # W&B's own lines, its copy of stdout and its prompt for an API key would disturb the live line.
        silent = wandb.Settings(silent=True, console="off")
        wandb.setup(silent)
        self._run = wandb.init(
            project=place,
            id=run,
            name=folder.name,
            resume="allow",
            dir=tempfile.mkdtemp(prefix="bt_jax-") if storage.in_bucket(folder) else str(folder),
            config=arguments.to_dict(settings),
            settings=silent,
        )
        # W&B accepts no step below its last one. An evaluation that is repeated after Ctrl-C has such a step.
        self._run.define_metric("*", step_metric="step")
        if self._run.url:
            messages.say(f"wandb       {self._run.url}")

    def write(self, step: int, values: Values, seconds: float) -> None:
        del seconds
        self._run.log({"step": step} | values, step=max(step, self._run.step))

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow:
    """A run of the experiment "bt_jax" in the store `place`, a URI."""

    def __init__(self, place: str, run: str, folder: Path, settings: Run, keep: Callable[[str], None]) -> None:
        for name in ("mlflow", "alembic"):  # they log every table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # its import sets it again
        self._client, self._metric = MlflowClient(place), Metric
        if run:
            self._client.update_run(run, status="RUNNING")
        else:
            known = self._client.get_experiment_by_name("bt_jax")
            experiment = known.experiment_id if known else self._client.create_experiment("bt_jax")
            run = self._client.create_run(experiment, run_name=folder.name).info.run_id
            keep(run)
            config = arguments.flatten(arguments.to_dict(settings))
            params = [Param(key, str(value)[:PARAM_CHARACTERS]) for key, value in config.items()]
            for at in range(0, len(params), PARAMS_AT_ONCE):
                self._client.log_batch(run, params=params[at : at + PARAMS_AT_ONCE])
        self._id = run

    def write(self, step: int, values: Values, seconds: float) -> None:
        metrics = [self._metric(name, value, round(1000 * seconds), step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
