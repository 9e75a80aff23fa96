"""The watchdog: threads that end the process when training stalls, with a message that names the reason.

With a single process the watchdog checks progress in steps alone. Several processes also exchange heartbeats once a
second, with their current steps. A process exits when another has failed or sends no heartbeat, or when no process
makes progress: a collective would wait for ever for a dead process (jax#38503).
"""

import contextlib
import enum
import faulthandler
import json
import socket
import sys
import threading
import time

from bt_jax.messages import TRY_AGAIN
from bt_jax.processes import coordination, exits

BEAT_SECONDS = 1.0
START_SECONDS = 1800.0  # minimum of the time limit before the first step, for reading data and compiling
_BEATS = "bt_jax/beat"
_watch: "Watch | None" = None


class Phase(enum.StrEnum):
    """The current work of a process, which sets its time limit."""

    STARTING = "starting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"
    DONE = "done"


def begin(*, stuck_seconds: float, silent_seconds: float) -> None:
    """Starts the watchdog.

    Args:
      stuck_seconds: this process ends after this time without progress (`report_progress`) of any process; 0: never.
        The limit does not apply while a process evaluates, because evaluations have no known limit.
      silent_seconds: another process counts as dead after this time without a heartbeat from it.
    """
    global _watch
    _watch = Watch(stuck_seconds, silent_seconds)


def report_progress(step: int, phase: Phase, detail: str = "", *, waited: float | None = None) -> None:
    """Records progress.

    Args:
      step: number of steps dispatched to the device.
      phase: the new phase of the host; messages add `detail`.
      waited: share of the time since the last report that was spent waiting for data.
    """
    if _watch:
        _watch.report_progress(step, phase, detail, waited)


def slowest_line() -> str:
    """The process that waits longest for its data, for the progress line; "" for a single process."""
    beats = _watch.beats() if _watch else {}
    if len(beats) < 2:
        return ""
    process, beat = max(beats.items(), key=lambda item: item[1]["waited"])
    return f"  most waiting: process {process} on {beat['host']}, {100 * beat['waited']:.0f} %"


def end() -> None:
    """Stops the watchdog at the end of the run."""
    if _watch:
        _watch.stop()


class Watch:
    """Two threads: one checks for stalls; with several processes, the other exchanges heartbeats.

    There are two because an exchange may wait for an answer. A process has one watchdog, see `begin`.
    """

    def __init__(self, stuck_seconds: float, silent_seconds: float):
        self._stuck, self._silent = stuck_seconds, silent_seconds
        self._begun = self._progress = self._exchanged = time.monotonic()
        self._beat = {"host": socket.gethostname(), "step": -1, "phase": Phase.STARTING, "detail": "", "waited": 0.0}
        self._received: dict[int, tuple[dict, float]] = {}  # other process -> its last beat, and when that changed
        self._done = threading.Event()
        jobs = {"watch": self._check} | (
            {"heartbeats": self._exchange_heartbeats} if coordination.is_multi_process() else {}
        )
        self._threads = [threading.Thread(target=job, name=name, daemon=True) for name, job in jobs.items()]
        for thread in self._threads:
            thread.start()

    def report_progress(self, step: int, phase: Phase, detail: str, waited: float | None) -> None:
        self._progress = time.monotonic()
        self._beat |= {"step": step, "phase": phase, "detail": detail}
        self._beat |= {} if waited is None else {"waited": round(waited, 3)}

    def beats(self) -> dict[int, dict]:
        """The last heartbeat of every process that has sent one."""
        received = {process: beat for process, (beat, _) in dict(self._received).items()}
        return received | {coordination.process(): self._beat}

    def stop(self) -> None:
        self._beat |= {"phase": Phase.DONE, "detail": ""}
        self._done.set()
        for thread in self._threads:
            thread.join(self._silent)

    def _exchange_heartbeats(self) -> None:
        count, done = 0, False
        while not done:
            done = self._done.wait(BEAT_SECONDS)
            count += 1
            with contextlib.suppress(Exception):  # process 0 does not answer: `_check` measures for how long
                self._exchange(count, last=done)
                self._exchanged = time.monotonic()

    def _exchange(self, count: int, *, last: bool) -> None:
        """Sends this process's heartbeat and reads those of the others; the last one is only sent."""
        store, beat = coordination.store(), json.dumps(self._beat | {"count": count})
        store.key_value_set(f"{_BEATS}/{coordination.process()}", beat, allow_overwrite=True)
        if last:
            return
        for process, notice in exits.exit_notices().items():
            if process != coordination.process():
                why = f": {notice['why']}" if notice["why"] else ""
                self._end(notice["status"], f"process {process} on {notice['host']} has ended{why}")
        now = time.monotonic()
        for key, text in store.key_value_dir_get(f"{_BEATS}/"):
            process, beat = int(key.rpartition("/")[2]), json.loads(text)
            if process == coordination.process():
                continue
            before = self._received.get(process, (None,))[0]
            if before is None or any(before[key] != beat[key] for key in ("step", "phase", "detail")):
                self._progress = now  # progress of others counts: the first to finish compiling waits for the last
            if before != beat:
                self._received[process] = beat, now

    def _check(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            if coordination.is_multi_process():
                self._end_if_silent()
            idle = time.monotonic() - self._progress
            # The limit is that of the slowest process: the others wait for it to finish compiling.
            phases = {beat["phase"] for beat in self.beats().values()}
            limit = max(self._stuck, START_SECONDS) if Phase.STARTING in phases else self._stuck
            if self._stuck and idle > limit and Phase.EVALUATING not in phases:
                self._give_up(
                    f"no step for {idle:.0f} s (config.watch.stuck_seconds). {self._behind()} The stacks of all"
                    " threads are above"
                )

    def _end_if_silent(self) -> None:
        now = time.monotonic()
        since = {other: self._received.get(other, (None, self._begun))[1] for other in range(coordination.processes())}
        since[0] = self._exchanged  # process 0 hosts the store: without it no heartbeat arrives
        for other, then in since.items():
            beat = self._received.get(other, ({"host": "", "step": -1, "phase": ""},))[0]
            if other != coordination.process() and beat["phase"] != Phase.DONE and now - then > self._silent:
                host = f" on {beat['host']}" if beat["host"] else ""
                self._end(
                    TRY_AGAIN,
                    f"process {other}{host} has been silent for {now - then:.0f} s, at step {beat['step']}: killed,"
                    " stopped, or its host is down",
                )

    def _behind(self) -> str:
        """A sentence that names the process that the others wait for."""
        beats = self.beats()
        if len(beats) == 1:
            return f"It was {_doing(self._beat)} at step {self._beat['step']}."
        last = min(beats, key=lambda process: beats[process]["step"])
        if beats[last]["step"] == max(beat["step"] for beat in beats.values()):
            return f"All processes are at step {beats[last]['step']}."
        where = f"Process {last} on {beats[last]['host']}"
        return f"{where} is behind the others: {_doing(beats[last])} at step {beats[last]['step']}."

    def _give_up(self, why: str) -> None:
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self._end(TRY_AGAIN, why)

    def _end(self, status: int, why: str) -> None:
        exits.print_on_every_process(f"{why}. {exits.exit_sentence(status)}")
        if coordination.is_multi_process():
            exits.fail_all_processes(status, why=why)
        exits.exit_now(status)


def _doing(beat: dict) -> str:
    """The phase of a process with its detail, such as "evaluating (KNN)"."""
    return f"{beat['phase']} ({beat['detail']})" if beat["detail"] else f"{beat['phase']}"
