"""The line with a bar, on a pseudo-terminal."""

import os
import signal
import sys

import jax
import numpy as np
import pytest

from bt_jax import messages, sharding
from bt_jax.evals import features
from bt_jax.messages import UserError
from bt_jax.processes.stop_signals import Stopped
from bt_jax.terminal import live_line
from tests.support.counted_run import run
from tests.support.terminal import terminal

BAR = "|█"


@pytest.fixture(autouse=True)
def every_update(monkeypatch):
    """Is drawn."""
    monkeypatch.setattr(live_line, "SECONDS_BETWEEN_DRAWINGS", 0.0)


def warn(step):
    """As a library does, which knows nothing of the line; in two pieces, as `print` writes."""
    sys.stderr.write(f"warning {step}")
    sys.stderr.write("\n")


def test_a_training_run_on_a_terminal(tmp_path, monkeypatch):
    """The line is drawn between its other lines, which keep their rows, as do warnings; at the end it is gone."""
    with terminal(monkeypatch) as seen, messages.lasting():
        run(tmp_path, monkeypatch, before_step=warn, window=10)
    assert " 20% |████" in seen.text and "| step 2/10  epoch 0.4" in seen.text
    assert "step 3: evaluating (often counted)" in seen.text
    rows = seen.rows()
    assert not [row for row in rows if BAR in row]
    assert [row for row in rows if "warning" in row] == [f"warning {step}" for step in range(1, 11)]
    said = ("compiling", "first step", "step ", "val/often", "warning")
    assert all(row.startswith(said) or not row for row in rows), rows
    assert sum(row.startswith("step ") for row in rows) == 6  # lines of metrics: the bar has the others


def test_a_file_has_no_bar(tmp_path, monkeypatch, capsys):
    run(tmp_path, monkeypatch)
    out, err = capsys.readouterr()
    assert "step 10/10" in out and BAR not in out and "\r" not in out + err


def test_a_notebook_has_no_bar(monkeypatch):
    """Its stdout is no terminal, although its descriptor may be that of the terminal of the server."""
    with terminal(monkeypatch) as seen:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
        with live_line.LiveLine(10) as line:
            line.update(5, lambda: "half")
    assert not seen.text


def test_only_the_first_process_draws(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with terminal(monkeypatch) as seen, live_line.LiveLine(10) as line:
        line.update(5, lambda: "half")
    assert not seen.text and not line.shown


def test_a_terminal_of_unknown_width_has_none(monkeypatch):
    """Lines every 15 seconds take its place."""
    with terminal(monkeypatch, columns=0), live_line.LiveLine(10) as line:
        assert not line.shown


@pytest.mark.parametrize("end", [UserError("The disk is full", "Free some."), KeyboardInterrupt()])
def test_a_failure_clears_the_line(monkeypatch, end):
    with terminal(monkeypatch) as seen, pytest.raises(type(end)), live_line.LiveLine(10) as line:
        line.update(5, lambda: "half")
        raise end
    assert " 50% |██████████          | half" in seen.text and seen.rows() == [""]


def test_ctrl_c_clears_the_line(tmp_path, monkeypatch):

    with terminal(monkeypatch) as seen, messages.lasting():
        events = run(
            tmp_path,
            monkeypatch,
            before_step=lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 3 else None,
            window=10,
        )
    assert isinstance(events[-1], Stopped) and BAR in seen.text
    assert seen.rows()[-2].startswith("stopped and saved at step") and not [row for row in seen.rows() if BAR in row]


def test_an_inner_line_takes_the_place_of_the_outer(monkeypatch):
    """Features are counted while the line of training is open; work of unknown amount has no bar."""
    with terminal(monkeypatch) as seen:
        with live_line.LiveLine(10) as outer:
            outer.update(1, lambda: "outer")
            with live_line.LiveLine(0) as inner:
                inner.update(7, lambda: "inner 7")
                outer.update(1, lambda: "heartbeat")  # its thread goes on
            messages.put("a line", sys.stdout)
            outer.update(2, lambda: "again")
        assert live_line._line is None
    assert seen.rows() == ["a line", ""] and "\n" not in seen.text.replace("a line\n", "")
    assert "heartbeat" not in seen.text
    assert seen.text.index("outer") < seen.text.index("inner 7") < seen.text.index("again")


def test_features_are_counted_from_the_start(monkeypatch):
    """Also while the first batch compiles. Meanwhile the line around them, which a heartbeat draws, is hidden."""
    batch = {"image": np.zeros((8, 2, 2, 3), np.uint8), "mask": np.arange(8) < 5}
    with terminal(monkeypatch) as seen, live_line.LiveLine(10) as outer:

        def embed(variables, batch):
            outer.update(1, lambda: "heartbeat")
            return np.zeros((8, 4), np.float32)

        features.extract(embed, {}, [batch], sharding.make_mesh(), of="test")
    assert "features of test: 0 images" in seen.text and "features of test: 5 images" in seen.text
    assert "heartbeat" not in seen.text and seen.rows() == [""]
