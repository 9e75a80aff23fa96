"""The training loop by itself, on a step that counts: whose turn it is when, what is saved after what, how it stops."""

import os
import signal
from types import SimpleNamespace

import pytest

from bt_jax import messages
from bt_jax.messages import UserError
from bt_jax.processes import watchdog
from bt_jax.processes.stop_signals import Stopped, StopSignals
from bt_jax.run_folder import metrics_log
from bt_jax.train import epochs, loop
from tests.support.counted_run import State, lines, run

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def test_who_has_its_turn_when(tmp_path, monkeypatch):
    """Also at the end, which is nobody's step; what is stopped before it is not the end of the schedule."""
    events = run(tmp_path, monkeypatch)
    turns = [event for event in events if event.split()[0] in ("save", "often", "never")]
    assert turns == ["often 3", "save 4", "often 6", "save 8", "often 9", "save 10", "often 10"]
    assert events[-2:] == ["closed", "wait"] and not (tmp_path / "tensorboard").exists()
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    turns = run(stopped, monkeypatch, **{"stop_after_steps": 5, "log.tensorboard": True})
    assert [event for event in turns if "save" in event or "often" in event] == [
        "often 3",
        "save 4",
        "save 5",
        "often 5",
    ]
    assert (stopped / "tensorboard").exists()
    trained = [line for line in lines(stopped) if "train/loss" in line]
    assert [line["step"] for line in trained] == [2, 3, 4, 5]
    assert [line["train/loss"] for line in trained] == [1.5, 3.0, 4.0, 5.0]  # means over windows
    assert [line["epoch"] for line in lines(stopped)] == [0.4, 0.6, 0.6, 0.8, 1.0, 1.0]


def test_a_run_that_ends_before_its_schedule_says_so(tmp_path, monkeypatch, capsys):
    """Both when it gets there and when it is started again; lines count to the end of the schedule."""
    for at, before in (
        (0, "stopped and saved at step 5 of 10"),
        (5, "nothing to train: the run has reached step 5 of 10"),
    ):
        run(tmp_path, monkeypatch, at=at, **{"stop_after_steps": 5})
        said = capsys.readouterr().out.splitlines()
        assert said[-1] == f"{before} (--config.stop_after_steps=5); to resume, leave that key out or raise it"
        assert at or any(line.startswith("step 5/10 ") for line in said)
    run(tmp_path, monkeypatch, at=5)
    assert "stop_after_steps" not in capsys.readouterr().out


def test_lines_are_on_the_disk_before_the_save(tmp_path, monkeypatch):
    """And the save comes before the evaluation: whatever ends the run, no line is missing and none comes twice."""
    events = run(tmp_path, monkeypatch)
    for step in (4, 8, 10):
        assert events[events.index(f"save {step}") - 1] == f"sync {step}"
    assert events.index("save 10") < events.index("often 10")


def test_what_was_saved_and_not_evaluated_is_made_up_for(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"step": 6, "train/loss": 1, "perf/data_wait": 0}\n')
    events = run(tmp_path, monkeypatch, at=6)
    assert events[0] == "often 6"
    done = tmp_path / "done"
    done.mkdir()
    (done / "metrics.jsonl").write_text('{"step": 10, "val/often": 1}\n')
    assert run(done, monkeypatch, at=10) == []


@pytest.mark.parametrize("limit", [2, 3])
def test_the_limit_of_steps_that_are_not_finite(tmp_path, monkeypatch, limit):
    """Steps 2, 3, ... are lost. The run ends with the first window that reaches the limit, not the next one, and not
    only where the mean of a window does; the state is saved and the line written by then."""
    events = run(tmp_path, monkeypatch, bad=lambda step: step - 1, nonfinite_limit=limit)
    last = limit + 1
    assert f"save {last}" in events and lines(tmp_path)[-1]["step"] == last and f"sync {last}" in events
    (error,) = [event for event in events if isinstance(event, UserError)]
    assert f"{limit} steps in a row before step {last} (learning rates: weights 0.25)" in str(error)
    assert "--config.optim.lr_weights" in error.fix
    windows = tmp_path / "windows"
    windows.mkdir()
    values = {"checkpoint.every_epochs": 0.0, "nonfinite_limit": 4}
    events = run(windows, monkeypatch, window=5, every=0, bad=lambda step: max(step - 6, 0), **values)
    assert [str(event)[:30] for event in events if isinstance(event, UserError)] == ["The loss or gradient was not f"]
    events = run(tmp_path, monkeypatch, bad=lambda step: int(step > 2), nonfinite_limit=2)
    assert not [event for event in events if isinstance(event, UserError)]


@pytest.fixture
def harmless():
    """Handlers that note, so that a signal that nobody takes does not end the tests."""
    taken = []
    before = {number: signal.signal(number, lambda number, frame: taken.append(number)) for number in STOP}
    yield taken
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP)
def test_every_signal_saves_and_says_which(tmp_path, monkeypatch, harmless, capsys, number):
    def hit(step):
        if step == 5:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(each) for each in STOP]
    events = run(tmp_path, monkeypatch, before_step=hit, **{"checkpoint.every_epochs": 0.0})
    (stopped,) = [event for event in events if isinstance(event, Stopped)]
    assert stopped.code == 128 + number and not harmless
    (save,) = [event for event in events if isinstance(event, str) and event.startswith("save")]
    at = int(save.split()[1])
    assert 5 <= at <= 6 and lines(tmp_path)[-1]["step"] == at and events.index(f"sync {at}") < events.index(save)
    assert number.name in capsys.readouterr().out
    assert [signal.getsignal(each) for each in STOP] == handlers


def test_a_second_signal_has_its_usual_effect(harmless):
    """It ends the program without the save, also where a shell has made Ctrl-C mean nothing."""
    stop = StopSignals(0)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM and stop.requested_before(3, 5) and stop.immediate and not harmless
        os.kill(os.getpid(), signal.SIGTERM)
        assert harmless == [signal.SIGTERM]
    finally:
        stop.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopSignals(0)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    finally:
        stop.close()


def test_a_closed_terminal_may_say_so_twice(harmless):
    """The kernel and the shell both do; where nohup has it ignored the run does not stop."""
    stop = StopSignals(0)
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal == signal.SIGHUP and not harmless
    finally:
        stop.close()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopSignals(0)
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.signal
    finally:
        stop.close()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_training_resumes_from_the_newest_checkpoint(monkeypatch, capsys):
    """Only a run without one creates its initial weights, and says what it waits for."""
    asked = []
    checkpoints = SimpleNamespace(latest=lambda: 6, restore=lambda *them: asked.append(them) or State(6))
    this = SimpleNamespace(checkpoints=checkpoints, plan=epochs.Plan(5, 10), like=lambda: "like", create=None)
    assert loop.initial_or_newest(this) == State(6) and asked == [("like", 6)]
    assert capsys.readouterr().out == "resuming from step 6 of 10\n"
    checkpoints.latest = lambda: None
    this.create = lambda: messages.say("creating") or State(0)
    beats = []
    monkeypatch.setattr(messages.Heartbeat, "start", lambda self: beats.append(self._text(15)))
    assert loop.initial_or_newest(this) == State(0)
    assert capsys.readouterr().out == "compiling the initial weights\ncreating\n"
    assert beats == ["still compiling the initial weights, 15 s"]


def test_the_end_comes_in_order(tmp_path, monkeypatch):
    """The feed is closed, then the log; the last save is awaited under the watchdog; then signals are as before."""
    events = []
    close, leave = metrics_log.RunLog.close, StopSignals.close
    monkeypatch.setattr(
        metrics_log.RunLog, "close", lambda self, **how: events.append("log closed") or close(self, **how)
    )
    monkeypatch.setattr(watchdog, "report_progress", lambda step, phase, *_, **__: events.append(f"{phase} {step}"))
    monkeypatch.setattr(StopSignals, "close", lambda self: events.append("signals") or leave(self))
    run(tmp_path, monkeypatch, events=events)
    assert events[-6:] == ["closed", "log closed", "saving 10", "wait", "signals", "evaluating 10"]


def test_every_process_asks_once_whether_to_stop(tmp_path, monkeypatch):
    """After the last window; not when an exception ends the run, as the other processes would wait for the rest."""
    asked = []
    ask = StopSignals.requested_anywhere
    monkeypatch.setattr(StopSignals, "requested_anywhere", lambda self: asked.append(1) or ask(self))
    run(tmp_path, monkeypatch)
    assert asked == [1]

    def broken(step):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, monkeypatch, before_step=broken)
    assert asked == [1]
