"""Signals that stop a run: Ctrl-C, SIGTERM, SIGUSR1, SIGHUP, Google's notices. All processes stop at the same step.

A closed terminal sends SIGHUP, which stays ignored under nohup. launch/slurm.sbatch makes Slurm send SIGUSR1 before its
time limit. Google's notices come from Compute Engine's metadata server: a maintenance event that ends the machine, and
the preemption of a spot machine.
"""

import contextlib
import json
import os
import signal
import threading
import time
import urllib.request
from typing import Self

import jax

from bt_jax import messages
from bt_jax.processes import coordination, exits
from bt_jax.terminal import interrupts

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
POLL_SECONDS, METADATA_SECONDS = 0.5, 5.0
_NOTICES, _BOUNDARIES = "bt_jax/stop/notice", "bt_jax/stop/boundary"


class Stopped(SystemExit):
    """A signal stopped the run after a save. The status is 128 + the signal on every process."""


class StopSignals:
    """Records stop signals, and decides between windows of steps whether to stop; a context manager.

    All processes run the same windows, at different pace. After a signal each publishes its next boundary, and all stop
    at the latest of these. A process that reaches a boundary meanwhile waits there for the decision, which needs only
    the threads of the other processes, not their steps.

    Attributes:
      signal: number of the received signal, or 0.
    """

    def __init__(self, first_step: int):
        self.signal = 0
        self._before = {}
        self._next, self._target, self._asked = first_step, None, False
        self._changed, self._done = threading.Condition(), threading.Event()
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: the signals belong to the caller
                break
        google = bool(os.environ.get("GCE_METADATA_HOST")) or jax.default_backend() == "tpu"
        self._thread = threading.Thread(target=self._listen, args=(google,), name="stopping", daemon=True)
        if google or coordination.is_multi_process():
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def immediate(self) -> bool:
        """True if a stop was requested and no other process has to agree: work in progress can be abandoned."""
        return bool(self.signal) and not coordination.is_multi_process()

    def requested_before(self, at: int, until: int) -> bool:
        """Whether to stop at step `at` instead of running the window of steps up to `until`."""
        if not coordination.is_multi_process():
            return bool(self.signal)
        with self._changed:
            while self._asked and self._target is None:
                self._changed.wait(POLL_SECONDS)
            if self._target is None:
                self._next = until
            return self._target is not None and at >= self._target

    def requested_anywhere(self) -> bool:
        """Whether any process received a signal. Every process must call this once, after its last window.

        A signal during that window comes too late for `requested_before`.
        """
        self.signal = max(coordination.gather(int(self.signal), barrier="the end of training"))
        return bool(self.signal)

    def close(self) -> None:
        """Restores the previous signal handlers, after the last window."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        interrupts.end_at_next()
        if self._thread.is_alive():
            if coordination.is_multi_process():
                with contextlib.suppress(Exception):  # no other process is left
                    _publish(_BOUNDARIES, self._next)
            self._done.set()
            self._thread.join()

    def _note(self, number, frame):
        del frame
        if number == signal.SIGINT and interrupts.ends_at_once():  # no step is taken yet: there is nothing to save
            return
        self.signal = number
        before = self._before.get(number)
        # A second signal has its usual effect, even if the shell ignores Ctrl-C for background jobs. A closed terminal
        # sends two SIGHUP at once, from the kernel and from the shell.
        again = signal.SIG_DFL if before in (None, signal.SIG_IGN) else before
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else again)
        self._say(signal.Signals(number).name)

    def _say(self, cause: str) -> None:
        text = f"{cause}: the run saves and stops within a few steps"
        exits.print_on_every_process(text) if coordination.is_multi_process() else messages.say(text)

    def _listen(self, google: bool) -> None:
        asked_google = 0.0
        while not self._done.wait(POLL_SECONDS):
            if google and not self.signal and time.monotonic() - asked_google > METADATA_SECONDS:
                asked_google = time.monotonic()
                if notice := _google_notice():
                    self.signal = signal.SIGTERM
                    self._say(notice)
            if coordination.is_multi_process():
                with contextlib.suppress(Exception):  # process 0 does not answer: `watchdog` ends this process
                    self._negotiate_stop_step()

    def _negotiate_stop_step(self) -> None:
        """Reads the boundaries of the other processes; sets the common stop step when all are published."""
        if self._target is not None:
            return
        notices = _published(_NOTICES)
        if self.signal and coordination.process() not in notices:
            _publish(_NOTICES, int(self.signal))
            return
        if not notices:
            return
        with self._changed:
            if not self._asked:
                self.signal = self.signal or notices[min(notices)]
                self._asked, boundary = True, self._next
                _publish(_BOUNDARIES, boundary)
            boundaries = _published(_BOUNDARIES)
            if len(boundaries) == coordination.processes():
                self._target = max(boundaries.values())
                self._changed.notify_all()


def _publish(folder: str, value: int) -> None:
    coordination.store().key_value_set(f"{folder}/{coordination.process()}", json.dumps(value), allow_overwrite=False)


def _published(folder: str) -> dict[int, int]:
    entries = coordination.store().key_value_dir_get(f"{folder}/")
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in entries}


def _google_notice() -> str:
    """Compute Engine's notice that it will stop this machine, or ""."""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    for key, harmless in (("maintenance-event", ("NONE", "MIGRATE_ON_HOST_MAINTENANCE")), ("preempted", ("FALSE",))):
        url = f"http://{host}/computeMetadata/v1/instance/{key}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})  # noqa: S310
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=2) as answer:  # noqa: S310
            value = answer.read(200).decode(errors="replace").strip()
            if value and value not in harmless:
                return f"Compute Engine's {key} is {value}"
    return ""
