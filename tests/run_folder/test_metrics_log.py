"""The log of a run: strict JSON lines on disk, TensorBoard events, and lines on the terminal."""

import json
import os
import struct
from types import SimpleNamespace

import jax
import pytest

from bt_jax import messages
from bt_jax.run_folder import metrics_log


@pytest.fixture
def clock(monkeypatch):
    """A clock for the log that changes only when it is set."""
    now = SimpleNamespace(seconds=100.0)
    clock = SimpleNamespace(monotonic=lambda: now.seconds, time=lambda: now.seconds)
    monkeypatch.setattr(metrics_log, "time", clock)
    return now


def lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_a_line_is_strict_json(tmp_path):
    written = metrics_log.RunLog(tmp_path, first_step=0, tensorboard=False)
    written.write(3, {"train/loss": float("nan"), "train/on_diag": float("inf"), "val/top1": 0.5})
    written.close()
    (line,) = lines(tmp_path)
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found == {"step": 3, "train/loss": None, "train/on_diag": None, "val/top1": 0.5}


def test_lines_are_on_disk_after_a_sync(tmp_path, monkeypatch):
    """The next checkpoint relies on it."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, os.fstat(file).st_size)))
    written = metrics_log.RunLog(tmp_path, first_step=0, tensorboard=False)
    written.write(1, {"train/loss": 2.0})
    written.sync()
    there = (tmp_path / "metrics.jsonl").stat()
    assert synced == [(there.st_ino, there.st_size)] and there.st_size > 0
    written.close()


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    """Truncated lines too; the step of the checkpoint stays."""
    (tmp_path / "metrics.jsonl").write_text(
        "".join(f'{{"step": {step}}}\n' for step in (2, 4, 4, 6)) + '{"step": 8, "v'
    )
    metrics_log.RunLog(tmp_path, first_step=4, tensorboard=False).close()
    assert lines(tmp_path) == ['{"step": 2}', '{"step": 4}', '{"step": 4}']


def test_tensorboard_has_the_names_and_steps_of_the_lines(tmp_path):
    from tensorboardX.proto import event_pb2

    written = metrics_log.RunLog(tmp_path, first_step=4)
    wanted = {(5, "train/loss"): 2.5, (5, "val/knn_top1"): 0.25, (6, "train/loss"): 1.5}
    for (step, name), value in wanted.items():
        written.write(step, {name: value})
    written.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:  # TFRecord: length, its checksum, payload, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[12 + length + 4 :]
    found = {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}
    assert found == wanted
    assert [event.step for event in events if event.HasField("session_log")] == [5]  # events of a longer run are hidden


def test_values_that_are_not_finite_cause_no_lines_of_tensorboard(tmp_path, caplog):
    written = metrics_log.RunLog(tmp_path, first_step=0)
    written.write(1, {"train/loss": float("nan"), "train/on_diag": float("inf")})
    written.close()
    assert not caplog.records


def test_only_the_first_process_prints(tmp_path, monkeypatch, capsys):
    messages.say("once")
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    messages.say("twice")
    written = metrics_log.RunLog(tmp_path, first_step=0)
    written.write(1, {"train/loss": 1.0})
    written.sync()
    written.close()
    assert capsys.readouterr().out == "once\n" and not list(tmp_path.iterdir())
