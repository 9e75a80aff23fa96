"""The end of a training run: its results, and the paths that every start prints last."""

from types import SimpleNamespace

import pytest

from bt_jax.report import write
from bt_jax.tasks import train_and_finish
from bt_jax.train import epochs, loop

STATES = {step: SimpleNamespace(step=step) for step in (0, 4, 8)}


@pytest.mark.parametrize(
    "first, last, there, finished, lines",
    [
        (0, 8, False, True, ["checkpoint", "metrics"]),
        (4, 8, True, True, ["checkpoint", "metrics"]),  # its newest checkpoint was damaged: the table comes again
        (8, 8, True, False, ["report", "checkpoint", "metrics"]),
        (8, 8, False, True, ["checkpoint", "metrics"]),  # killed before its results were written
        (0, 4, False, False, ["checkpoint", "metrics"]),  # stop_after_steps
    ],
)
def test_every_start_ends_with_its_paths(tmp_path, monkeypatch, capsys, first, last, there, finished, lines):
    """The results are written at the end of the schedule, unless nothing was left to do."""
    monkeypatch.setattr(loop, "initial_or_newest", lambda run: STATES[first])
    monkeypatch.setattr(loop, "train", lambda run, state: STATES[last])
    monkeypatch.setattr(write, "has_results", lambda folder, step: there)
    run = SimpleNamespace(
        folder=tmp_path, plan=epochs.Plan(4, 8), checkpoints=SimpleNamespace(close=lambda: print("closed"))
    )
    evaluated = []
    assert train_and_finish.train_and_finish(run, evaluated.append) == tmp_path
    assert evaluated == [STATES[8]] * finished
    said = [line for line in capsys.readouterr().out.splitlines() if line != "closed"]
    assert [line.split()[0] for line in said] == lines and said[-1] == f"metrics     {tmp_path / 'metrics.jsonl'}"
    assert said[-2] == f"checkpoint  {tmp_path / 'checkpoints' / str(last)}"
