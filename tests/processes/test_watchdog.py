"""Decisions of one process of several: which is slow or silent, the common stop, and the exit status."""

import os
import signal
import time
from types import SimpleNamespace

import pytest

from bt_jax.messages import TRY_AGAIN, UserError
from bt_jax.processes import coordination, exits, watchdog
from bt_jax.processes.stop_signals import StopSignals
from bt_jax.processes.watchdog import Phase


def watching(monkeypatch, beats, *, own=0, idle=0.0, stuck=0.0, silent=9.0, heard=None):
    """A `Watch` without threads that has received `beats`, and the list of its exits."""
    seen, now = watchdog.Watch.__new__(watchdog.Watch), time.monotonic()
    others = {process: (beat, now - (heard or {}).get(process, 0)) for process, beat in beats.items() if process != own}
    seen._received, seen._beat, seen._stuck, seen._silent = others, beats[own], stuck, silent
    seen._begun = seen._exchanged = now
    seen._progress, ended = now - idle, []
    looks = iter([False, True])
    seen._done = SimpleNamespace(wait=lambda seconds: next(looks))
    values = {"is_multi_process": len(beats) > 1, "process": own, "processes": len(beats)}
    for name, value in values.items():
        monkeypatch.setattr(coordination, name, lambda value=value: value)
    monkeypatch.setattr(watchdog.Watch, "_end", lambda self, status, why: ended.append((status, why)))
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback", lambda **_: None)
    monkeypatch.setattr(watchdog, "_watch", seen)
    return seen, ended


def beat(host, step, phase=Phase.TRAINING, waited=0.0):
    return {"host": host, "step": step, "phase": phase, "detail": "", "waited": waited}


def test_the_slowest_process_is_named(monkeypatch):
    """The process that waits longest for data, and the process with the lowest step."""
    beats = {0: beat("a", 7, waited=0.1), 1: beat("b", 7, waited=0.75), 2: beat("c", 4, waited=0.0)}
    seen, _ = watching(monkeypatch, beats)
    assert watchdog.slowest_line() == "  most waiting: process 1 on b, 75 %"
    assert seen._behind() == "Process 2 on c is behind the others: training at step 4."
    seen, _ = watching(monkeypatch, {0: beat("a", 7), 1: beat("b", 7)})
    assert seen._behind() == "All processes are at step 7."
    seen, _ = watching(monkeypatch, {0: beat("a", 3, "saving")})
    assert watchdog.slowest_line() == "" and seen._behind() == "It was saving at step 3."


@pytest.mark.parametrize("phase, ends", [(Phase.TRAINING, True), (Phase.STARTING, False), (Phase.EVALUATING, False)])
def test_compiling_may_take_long(monkeypatch, phase, ends):
    """Also if only another process compiles or evaluates."""
    monkeypatch.setattr(watchdog, "START_SECONDS", 1000)
    for beats in ({0: beat("a", -1, phase)}, {0: beat("a", 3), 1: beat("b", -1, phase)}):
        seen, ended = watching(monkeypatch, beats, idle=100, stuck=50)
        seen._check()
        assert [status for status, _ in ended] == [TRY_AGAIN] * ends
        seen, ended = watching(monkeypatch, beats, idle=100, stuck=0)  # never
        seen._check()
        assert ended == []
    seen, ended = watching(monkeypatch, {0: beat("a", -1, "starting")}, idle=1100, stuck=50)
    seen._check()
    assert ended and "no step for 1100 s (config.watch.stuck_seconds)" in ended[0][1]


def test_a_silent_process_is_named_and_ends_this_one(monkeypatch):
    beats = {0: beat("a", 7), 1: beat("b", 5), 2: beat("c", 9, Phase.DONE)}
    seen, ended = watching(monkeypatch, beats, silent=30, heard={1: 29, 2: 500})
    seen._end_if_silent()
    assert ended == []  # not yet; a finished process may be silent
    seen, ended = watching(monkeypatch, beats, silent=30, heard={1: 31})
    seen._end_if_silent()
    ((status, why),) = ended
    assert status == TRY_AGAIN and why.startswith("process 1 on b has been silent for 31 s, at step 5")


def test_all_stop_at_the_furthest_boundary(monkeypatch):
    """Process 1 is three windows ahead when process 0 receives the signal, and cannot undo them."""
    kept: dict[str, str] = {}

    class Store:
        def key_value_set(self, key, value, allow_overwrite):
            kept[key] = value

        def key_value_dir_get(self, folder):
            return [item for item in kept.items() if item[0].startswith(folder)]

    for name, value in {"is_multi_process": True, "process": 0, "processes": 2, "store": Store()}.items():
        monkeypatch.setattr(coordination, name, lambda value=value: value)
    monkeypatch.setattr(exits, "print_on_every_process", lambda text: None)
    monkeypatch.setattr(StopSignals, "_listen", lambda self, google: None)
    stop = StopSignals(0)
    try:
        assert not stop.requested_before(0, 3)
        os.kill(os.getpid(), signal.SIGUSR1)
        stop._negotiate_stop_step()
        assert kept == {"bt_jax/stop/notice/0": str(int(signal.SIGUSR1))} and not stop.immediate
        kept["bt_jax/stop/boundary/1"] = "12"
        stop._negotiate_stop_step()
        assert kept["bt_jax/stop/boundary/0"] == "3"
        assert [stop.requested_before(at, at + 3) for at in (3, 6, 9, 12)] == [False, False, False, True]
    finally:
        stop.close()


@pytest.mark.parametrize(
    "error, status",
    [
        (UserError("There is no folder", "Name another."), 2),
        (UserError("The network is gone", "Wait.", status=TRY_AGAIN), TRY_AGAIN),
        (KeyboardInterrupt(), 130),
        (KeyError("x"), 1),
    ],
)
def test_a_failing_process_exits_with_its_status(monkeypatch, error, status):
    """In a multi-process run; a single process raises the error unchanged."""
    left = []
    monkeypatch.setattr(exits, "fail_all_processes", lambda status, why: left.append((status, why)))
    for several in (False, True):
        monkeypatch.setattr(coordination, "is_multi_process", lambda several=several: several)
        monkeypatch.setattr(exits, "print_on_every_process", lambda text: None)
        with pytest.raises(type(error)), exits.failures_end_all():
            raise error
    ((found, why),) = left
    assert found == status and str(error) in why
