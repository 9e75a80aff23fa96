"""The line that a person reads while a run trains."""

from types import SimpleNamespace

import pytest

from bt_jax.train import progress as progress_line
from bt_jax.train.milestones import Milestones


@pytest.fixture
def clock(monkeypatch):
    """The clock of the progress line, which stands still until it is set."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress_line, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_the_time_to_go_shrinks(clock):
    progress = progress_line.Progress(first_step=0, total_steps=1000, batch_size=64, steps_per_epoch=100)
    shown = []
    for step in (100, 200, 900, 1000):
        clock.seconds += 10 if step != 900 else 70
        shown.append(progress.line(step, progress.measure(step)))
    assert [line.rpartition("ETA ")[2] for line in shown] == ["1:30", "1:20", "0:10", "0:00"]
    assert "step 200/1000  epoch 2.0" in shown[1] and "640 pairs/s" in shown[1]
    assert progress_line._clock(3 * 3600 + 62) == "3:01:02"


def test_the_time_to_go_has_the_saves_and_evaluations(clock):
    """Each as long as the last of its kind; a slow window alone changes little."""
    left = Milestones(1000, 500, [SimpleNamespace(every_steps=100)], lambda step: 100).pauses_left
    progress = progress_line.Progress(
        first_step=0, total_steps=1000, batch_size=64, steps_per_epoch=100, pauses_left=left
    )
    shown = []
    for step in range(100, 1001, 100):
        clock.seconds += 10 if step != 300 else 30
        shown.append(progress.line(step, progress.measure(step)))
        if left(step)["save"] > left(step + 1)["save"]:
            clock.seconds += 5
            progress.skip(pause="save")
        clock.seconds += 7
        progress.skip(pause="evaluation")
    # 800 steps of 0.1 s and 9 evaluations; then 700 of 1/6 s and 8; then 100, 2 evaluations and the save of the end
    times = [line.rpartition("ETA ")[2] for line in shown]
    assert [times[1], times[2], times[8]] == ["2:23", "2:52", "0:31"]


def test_evaluations_that_are_not_timed_yet_are_counted(clock):
    """A short line and a line of metrics say so until the first is over, and a run that evaluates never does not."""
    left = Milestones(1000, 500, [SimpleNamespace(every_steps=500)], lambda step: 100).pauses_left
    shared = {"first_step": 0, "total_steps": 1000, "batch_size": 64, "steps_per_epoch": 100}
    never, progress = progress_line.Progress(**shared), progress_line.Progress(**shared, pauses_left=left)
    clock.seconds += 10
    assert progress.short_line(100).endswith("ETA 1:30 + 2 evaluations")
    assert progress.line(100, progress.measure(100)).endswith("ETA 1:30 + 2 evaluations")
    assert progress.line(501, {"epoch": 5.0, "perf/data_wait": 0.0}).endswith("ETA 0:49 + 1 evaluation")
    assert never.line(100, never.measure(100)).endswith("ETA 1:30")
    progress.skip(pause="evaluation")
    assert progress.line(501, {"epoch": 5.0, "perf/data_wait": 0.0}).endswith("ETA 0:49")


def test_the_time_to_go_has_no_compilation_that_is_over(clock):
    """The first evaluation lasts 27 s, of which it compiles for 25 s; the next one is at the end."""
    compiled = [3.0]  # of the step
    left = Milestones(1000, 0, [SimpleNamespace(every_steps=900)], lambda step: 100).pauses_left
    progress = progress_line.Progress(
        first_step=800,
        total_steps=2000,
        last_step=1000,
        batch_size=64,
        steps_per_epoch=100,
        pauses_left=left,
        compiled=lambda: compiled[-1],
    )
    clock.seconds += 10
    progress.measure(900)
    compiled.append(28.0)
    clock.seconds += 27
    progress.skip(pause="evaluation")
    shown = []
    for step in (925, 950, 975, 1000):
        clock.seconds += 2.5
        shown.append(progress.line(step, progress.measure(step)))
    assert [line.rpartition("ETA ")[2] for line in shown] == ["0:09", "0:07", "0:04", "0:02"]
    assert shown[0].startswith("step 925/2000 ")


def test_speed_and_waiting_are_of_the_steps_since_the_last_line(clock):
    """Without the time of an evaluation between them."""
    progress = progress_line.Progress(first_step=50, total_steps=1000, batch_size=8, steps_per_epoch=100, unit="images")
    clock.seconds += 4
    assert progress.measure(60, waited=1.0) == {"epoch": 0.6, "perf/images_per_sec": 20.0, "perf/data_wait": 0.25}
    clock.seconds += 1000
    progress.skip()
    clock.seconds += 2
    values = progress.measure(70, waited=2.0)
    assert values == {"epoch": 0.7, "perf/images_per_sec": 40.0, "perf/data_wait": 0.5}
    assert "40 images/s  waiting 50 %" in progress.line(70, values)


def test_the_terms_of_the_loss_stand_beside_it(clock):
    progress = progress_line.Progress(
        first_step=0, total_steps=9, batch_size=8, steps_per_epoch=3, terms=("spread", "absent")
    )
    clock.seconds += 1
    values = progress.measure(3) | {
        "train/loss": 2.0,
        "train/spread": 0.5,
        "train/other": 1.0,
        "train/probe_top1": 0.25,
    }
    assert "epoch 1.0  loss 2  spread 0.5  probe_top1 0.25  24 pairs/s" in progress.line(3, values)
