"""What the training loop writes, and when: metrics, evaluations, speed."""

import os
import signal
from types import SimpleNamespace

import jax
import pytest

from bt_jax import messages
from bt_jax.messages import UserError
from bt_jax.processes.stop_signals import Stopped
from bt_jax.run_folder import metrics_log
from bt_jax.train import compile_time, progress, recorder
from tests.support.counted_run import lines, run


@pytest.fixture
def accelerator(monkeypatch):
    """Reading metrics waits for the device, so that they are read late."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.fixture
def events(monkeypatch):
    """Also of the lines that are written."""
    noted, write = [], metrics_log.RunLog.write

    def noting(self, step, values):
        noted.append(f"{'line' if 'train/loss' in values else 'values'} {step}")
        write(self, step, values)

    monkeypatch.setattr(metrics_log.RunLog, "write", noting)
    return noted


def test_metrics_are_read_while_the_next_window_runs(tmp_path, monkeypatch, accelerator, events):
    """But before a save or an evaluation those of its step."""
    run(tmp_path, monkeypatch, events=events, before_step=lambda step: events.append(step), every=6)
    assert events[:8] == [1, 2, 3, 4, "line 2", "line 4", "sync 4", "save 4"]
    assert events[8:13] == [5, 6, "line 6", "often 6", "values 6"]


def test_a_cpu_reads_at_once(tmp_path, monkeypatch, events):
    """Its steps run while they are dispatched: later the time would be that of the wrong window."""
    run(tmp_path, monkeypatch, events=events, before_step=lambda step: events.append(step), every=6)
    assert events[:6] == [1, 2, "line 2", 3, 4, "line 4"]


def test_a_lost_run_saves_what_ran_meanwhile(tmp_path, monkeypatch, accelerator, events):
    """Steps 1 and 2 are lost. The next window ran before that was known, so the state that is saved has it."""
    run(tmp_path, monkeypatch, events=events, every=0, bad=lambda step: step, nonfinite_limit=2, window=1)
    *before, error = events
    assert isinstance(error, UserError) and "before step 2 " in str(error)
    assert before == ["line 1", "line 2", "line 3", "sync 3", "save 3", "closed", "wait"]


def test_an_interrupted_evaluation_is_repeated_by_the_next_start(tmp_path, monkeypatch, events):
    def interrupt(step):
        os.kill(os.getpid(), signal.SIGTERM)

    run(tmp_path, monkeypatch, events=events, during=interrupt)
    assert isinstance(events[-1], Stopped) and "often 3" in events and "values 3" not in events
    assert lines(tmp_path)[-1]["step"] == 3
    again = run(tmp_path, monkeypatch, at=3)
    assert again[0] == "often 3" and any("val/often" in line and line["step"] == 3 for line in lines(tmp_path))


def test_the_speed_is_that_of_training(tmp_path, monkeypatch):
    """One step a second, 256 images each, however long saves and evaluations last."""
    now = SimpleNamespace(seconds=0.0)

    def lasts(seconds):
        return lambda step: setattr(now, "seconds", now.seconds + seconds)

    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    run(tmp_path, monkeypatch, before_step=lasts(1), during=lasts(1000), in_save=lasts(500))
    speeds = {line["step"]: line["perf/pairs_per_sec"] for line in lines(tmp_path) if "perf/pairs_per_sec" in line}
    assert speeds == pytest.approx(dict.fromkeys((2, 3, 4, 6, 8, 9, 10), 256.0))


def test_the_wait_for_the_compiler_is_announced(tmp_path, monkeypatch, capsys):
    """With the time it took before, and it is in no speed; a first dispatch that is a whole window has none."""
    now = SimpleNamespace(seconds=0.0)

    def step_of(step):
        now.seconds += 300 if step == 1 else 1

    for module in (progress, recorder):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, wait in (("one", "takes seconds to minutes"), ("two", "took 300 s before; less from the cache")):
        (tmp_path / name).mkdir()
        run(tmp_path / name, monkeypatch, before_step=step_of, window=1)
        said = capsys.readouterr().out.splitlines()
        assert said[0] == f"compiling the training step ({wait})" and said[1].startswith("first step done ")
        first, second, *_ = lines(tmp_path / name)
        assert "perf/pairs_per_sec" not in first and second["perf/pairs_per_sec"] == 256
    assert said[2] == "step 1/10  epoch 0.2  loss 1  waiting 0 %" and said[3].endswith("ETA 0:08 + 4 evaluations")
    (tmp_path / "bt_jax" / compile_time.NAME).write_text("[")  # a damaged file is none
    assert compile_time.expected("any") is None


def test_a_program_from_the_cache_leaves_the_time_of_its_compilation(tmp_path, monkeypatch, capsys):
    """Evaluations before the first step may read theirs from it."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(recorder, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def start(at, seconds, during=lambda step: None, read=lambda step: None):
        (folder := tmp_path / str(now.seconds)).mkdir()

        def before(step):
            now.seconds += seconds if step == at + 1 else 0
            read(step)

        run(folder, monkeypatch, at=at, before_step=before, during=during)
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("compiling"))

    def hit(step):
        jax.monitoring.record_event(compile_time.READ)

    assert "seconds to minutes" in start(0, 48)
    assert "took 48 s before" in start(0, 2, read=hit)
    assert "took 48 s before" in start(3, 50, during=lambda step: step == 3 and hit(step))
    assert "took 50 s before" in start(0, 1)


def test_jax_says_when_it_reads_a_program_from_its_cache():
    """The tests run with a cache."""
    counts = []
    for _ in range(2):
        jax.jit(lambda x: x * 3 + 1).lower(jax.ShapeDtypeStruct((7,), "float32")).compile()
        counts.append(compile_time.programs_read())
    assert counts[1] == counts[0] + 1


def test_a_line_comes_at_least_every_15_seconds(tmp_path, monkeypatch, capsys):
    """However long a window is; it has no metrics, for which the host would have to wait."""
    now = SimpleNamespace(seconds=0.0)
    for module in (progress, recorder, messages):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.seconds))

    def step_of(step):
        now.seconds += 6

    run(tmp_path, monkeypatch, before_step=step_of, window=10, every=0, **{"checkpoint.every_epochs": 0.0})
    said = capsys.readouterr().out.splitlines()
    between = [line.split()[1] for line in said if line.startswith("step ") and "loss" not in line]
    assert between == ["4/10", "7/10", "10/10"] and said[2].endswith("43 pairs/s  ETA 0:36")
    assert [line["step"] for line in lines(tmp_path)] == [10]


def test_a_long_compilation_is_said_again_and_again(tmp_path, monkeypatch, capsys):
    """Until the first step is done, from when the thread is silent."""
    beats = []
    monkeypatch.setattr(messages.Heartbeat, "start", lambda self: beats.append(self))
    monkeypatch.setattr(messages.Heartbeat, "stop", lambda self: beats.append("stop"))
    run(tmp_path, monkeypatch, before_step=lambda step: step == 2 and beats.append("step 2"))
    beat, *after = beats
    assert beat._text(30) == "still compiling, 30 s" and after[:2] == ["stop", "step 2"] and after[-1] == "stop"


def test_a_long_evaluation_is_said_again_and_again(tmp_path, monkeypatch):
    """By a thread of its own for each evaluator, whose bar stays at the step."""
    beats = []
    monkeypatch.setattr(messages.Heartbeat, "start", lambda self: beats.append((self._text(15), self._done)))
    monkeypatch.setattr(messages.Heartbeat, "stop", lambda self: beats.append("stop"))
    run(tmp_path, monkeypatch, during=lambda step: beats.append(step), **{"stop_after_steps": 3})
    assert beats[2:] == [("step 3: evaluating (often counted), 15 s", 3), 3, "stop", "stop"]


def test_a_compilation_is_announced_when_it_comes(tmp_path, monkeypatch, capsys):
    """After the evaluation that the last start still owes, and not if no step follows."""
    for last, lines_said in ((10, ["val/often 1", "compiling the training step"]), (3, ["val/often 1"])):
        folder = tmp_path / str(last)
        folder.mkdir()
        run(folder, monkeypatch, at=3, **{"stop_after_steps": last})
        said = capsys.readouterr().out.splitlines()
        assert [line.partition(" (")[0] for line in said[: len(lines_said)]] == lines_said
        assert any(line.startswith("compiling") for line in said) == (last > 3)


def test_a_lost_run_in_float32_gets_no_advice_of_float32():
    values = {"train/bad_steps": 3.0, "train/lr_weights": 0.5}
    half, single = (str(recorder._not_finite(8, values, dtype)) for dtype in ("bfloat16", "float32"))
    assert "a lower --config.optim.lr_weights, or with --config.model.dtype=float32. Those" in half
    assert "a lower --config.optim.lr_weights. Those" in single
