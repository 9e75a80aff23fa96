"""Being told to stop: Ctrl-C, SIGTERM, SIGUSR1, SIGHUP, Google's notices; of several processes all stop at one step.

A terminal that is closed sends SIGHUP; under nohup it stays ignored. Slurm sends SIGUSR1 ahead of its limit. The
notices are those of Compute Engine's metadata server: a maintenance event that ends the
machine, and the preemption of a spot machine.
"""

import contextlib
import json
import os
import signal
import threading
import time
import urllib.request

import jax

from bt_jax import messages
from bt_jax.processes import coordination, exits

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
POLL_SECONDS, METADATA_SECONDS = 0.5, 5.0
_NOTICES, _BOUNDARIES = "bt_jax/stop/notice", "bt_jax/stop/boundary"


class Stopped(SystemExit):
    """The run was saved because it was told to stop; the status is 128 + the signal, on every process."""


class Stop:
    """Whether to stop, asked between windows of steps.

    Several processes take the same windows, but their hosts are not equally far. Once any of them is told to stop, each
    tells at which boundary it will be next; the furthest of these is where all stop. A process that comes to a boundary
    meanwhile waits there for the answer, which needs only the threads of the others, not their steps.
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
            except ValueError:  # not in the main thread: somebody else's signals
                break
        google = bool(os.environ.get("GCE_METADATA_HOST")) or jax.default_backend() == "tpu"
        self._thread = threading.Thread(target=self._listen, args=(google,), name="stopping", daemon=True)
        if google or coordination.several():
            self._thread.start()

    @property
    def now(self) -> bool:
        """Told to stop, and nobody else is to be asked: whatever is being done may be left."""
        return bool(self.signal) and not coordination.several()

    def before(self, at: int, until: int) -> bool:
        """Whether to stop at step `at`, rather than take the window of steps up to `until`."""
        if not coordination.several():
            return bool(self.signal)
        with self._changed:
            while self._asked and self._target is None:
                self._changed.wait(POLL_SECONDS)
            if self._target is None:
                self._next = until
            return self._target is not None and at >= self._target

    def after_all(self) -> bool:
        """Whether anybody was told to stop, asked by all once no more windows are taken: somebody may have been since
        the last one began, too late to stop before it."""
        self.signal = max(coordination.gather(int(self.signal), what="the end of training"))
        return bool(self.signal)

    def close(self, at: int) -> None:
        """No more windows are taken, at step `at`: the signals have their usual effect again."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._thread.is_alive():
            with self._changed:
                self._next = at
            if coordination.several():
                with contextlib.suppress(Exception):  # nobody is left to be told
                    _publish(_BOUNDARIES, at)
            self._done.set()
            self._thread.join()

    def _note(self, number, frame):
        del frame
        self.signal = number
        before = self._before.get(number)
        # A second one has its usual effect, also where a shell that started this in the background ignores Ctrl-C. Of a
        # terminal that is closed two come at once, from the kernel and from the shell.
        again = signal.SIG_DFL if before in (None, signal.SIG_IGN) else before
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else again)
        self._say(signal.Signals(number).name)

    def _say(self, told: str) -> None:
        text = f"{told}: saving within a few steps"
        exits.say_everywhere(text) if coordination.several() else messages.say(text)

    def _listen(self, google: bool) -> None:
        asked_google = 0.0
        while not self._done.wait(POLL_SECONDS):
            if google and not self.signal and time.monotonic() - asked_google > METADATA_SECONDS:
                asked_google = time.monotonic()
                if told := _google():
                    self.signal = signal.SIGTERM
                    self._say(told)
            if coordination.several():
                with contextlib.suppress(Exception):  # process 0 is gone: `watchdog` ends this one
                    self._agree()

    def _agree(self) -> None:
        """One look at what the others have told; fixes the step where all stop, once all have."""
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
    found = coordination.store().key_value_dir_get(f"{folder}/")
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}


def _google() -> str:
    """What Compute Engine has in store for this machine, or ""."""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    for key, harmless in (("maintenance-event", ("NONE", "MIGRATE_ON_HOST_MAINTENANCE")), ("preempted", ("FALSE",))):
        url = f"http://{host}/computeMetadata/v1/instance/{key}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})  # noqa: S310
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=2) as answer:  # noqa: S310
            told = answer.read(200).decode(errors="replace").strip()
            if told and told not in harmless:
                return f"Compute Engine's {key} is {told}"
    return ""
