"""The metrics of a run: metrics.jsonl, and under the same names TensorBoard events and the values of trackers."""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from bt_jax import storage
from bt_jax.run_folder.append_folder import AppendFolder
from bt_jax.run_folder.trackers import Tracker

NAME = "metrics.jsonl"


class RunLog:
    """Appends metrics to the files of a run folder; only the first process writes.

    Args:
      folder: the run folder; must exist.
      first_step: lines of later steps, from a run that got further than its last checkpoint, are deleted. The
        trackers have them already; the repeated steps give the same values, which are not sent again.
    """

    def __init__(
        self, folder: Path, *, first_step: int, tensorboard: bool = True, trackers: Sequence[Tracker] = ()
    ) -> None:
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        self._folder = AppendFolder(folder, (NAME,))
        path = self._folder.local / NAME
        dropped = _drop_after(path, first_step) if path.exists() else []
        self._trackers, self._sent = trackers, {(one["step"], name) for one in dropped for name in one}
        self._file = path.open("a")
        self._board = _Board(self._folder.local / "tensorboard", first_step + 1) if tensorboard else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one line {"step": …, name: value, …}; values that are not finite become null."""
        if not self._writes:
            return
        self._file.write(storage.to_json({"step": step} | values) + "\n")
        self._file.flush()
        if self._board:
            self._board.write(step, values)
        new = {name: value for name, value in values.items() if (step, name) not in self._sent}
        for tracker in self._trackers:
            if sent := new if tracker.resumed else values:
                tracker.write(step, sent)
        self._folder.copy_if_due()

    def sync(self) -> None:
        """Waits until all lines are on the disk or in the bucket."""
        if self._writes:
            os.fsync(self._file.fileno())
            self._folder.sync()

    def close(self, *, failed: bool = False) -> None:
        """Flushes and closes the files and the trackers.

        Args:
          failed: the run ended with an error; trackers show it.
        """
        if self._writes:
            for tracker in self._trackers:
                tracker.close(failed=failed)
            for file in filter(None, (self._file, self._board)):
                with contextlib.suppress(OSError):  # a full disk, which the write has reported
                    file.close()
            self._folder.close()


class _Board:
    """An event file for TensorBoard, written without a queue.

    tensorboardX's SummaryWriter is not used: a full disk kills its thread, then its queue fills and the run hangs.
    """

    def __init__(self, folder: Path, first_step: int):
        # imported here: a run without TensorBoard needs neither the package nor the time of the import
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        # It warns of each value that is not finite, in lines that do not name the metric; the run reports those itself.
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
        folder.mkdir(exist_ok=True)
        self._event, self._scalar = event_pb2.Event, summary.scalar
        self._file = event_file_writer.EventsWriter(str(folder / "events"), f".{os.getpid()}")
        # TensorBoard then hides earlier events of these steps, from a run that got further than its last checkpoint.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._file.write_event(event_pb2.Event(step=first_step, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            event = self._event(wall_time=time.time(), step=step, summary=self._scalar(name, value))
            self._file.write_event(event)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def evaluated(folder: Path, step: int) -> bool:
    """Whether the run's evaluators have written their line of a step."""
    lines = (storage.read(folder / NAME) or b"").decode(errors="replace").splitlines()
    return any(_step(line) == step and '"perf/' not in line for line in lines)


def _drop_after(path: Path, step: int) -> list[dict]:
    """Deletes the lines of later steps; returns the whole ones among them."""
    lines = path.read_text().splitlines()
    storage.write(path, "".join(f"{line}\n" for line in lines if _step(line) <= step))
    return [json.loads(line) for line in lines if step < _step(line) < math.inf]


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf  # truncated when the run was killed
