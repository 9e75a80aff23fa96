"""Printing: a closed pipe, a full disk, or unprintable characters do not end a program."""

import errno
import io
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bt_jax import messages
from bt_jax.cli import config_program, tool
from bt_jax.messages import UserError
from bt_jax.processes import exits
from bt_jax.selfcheck import __main__ as selfcheck
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    "number, noun, said",
    [(1, "shard", "1 shard"), (2, "shard", "2 shards"), (1.0, "epoch", "1 epoch"), (0.5, "epoch", "0.5 epochs")]
    + [(1_281_167, "image", "1281167 images")],
)
def test_a_number_with_its_noun(number, noun, said):
    assert messages.counted(number, noun) == said


class Failing(io.StringIO):
    """A stream that fails with an error number until it has `room`."""

    def __init__(self, number):
        super().__init__()
        self.number, self.room = number, False

    def write(self, text):
        if not self.room:
            raise OSError(self.number, "x")
        return super().write(text)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_a_program_continues_and_reports_the_failure_once(monkeypatch, number):
    out, err = Failing(number), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with messages.lasting():
        for _ in range(3):
            print("a line", flush=True)
            messages.say("a line")
        out.room = True
        print("later", flush=True)
    assert (sys.stdout, sys.stderr) == (out, err)
    assert err.getvalue().count("\n") == 1 and "nothing can be written to stdout ([Errno" in err.getvalue()
    assert out.getvalue() == (
        "later\n" if number == errno.ENOSPC else ""
    )  # a disk may get space again, but a closed pipe stays closed


def test_both_streams_may_be_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Failing(errno.EPIPE))
    monkeypatch.setattr(sys, "stderr", Failing(errno.EPIPE))
    with messages.lasting():
        print("a line", flush=True)
        print("a line", file=sys.stderr, flush=True)
        exits.print_on_every_process("a line")


@pytest.mark.parametrize("stream", [None, Failing(errno.EPIPE)])
def test_a_line_of_the_library_does_not_end_the_program(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    messages.say("a line")
    exits.print_on_every_process("a line")


def test_unprintable_characters_are_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    with messages.lasting():
        print("café \udce9", flush=True)
    assert written.getvalue() == b"caf\\xe9 \\udce9\n"


def test_a_signal_handler_may_print_within_another_line(monkeypatch, tmp_path):
    class Busy(io.StringIO):
        def write(self, text):
            raise RuntimeError("reentrant call inside <_io.BufferedWriter>")

        def fileno(self):
            return file.fileno()

    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Busy())
        with messages.lasting():
            print("saving", flush=True)
    assert (tmp_path / "out").read_text() == "saving\n"


def test_every_command_survives_a_closed_stream(monkeypatch):
    """They print and exit with their usual status."""
    monkeypatch.setattr(sys, "stderr", Failing(errno.EPIPE))
    monkeypatch.setattr(sys, "stdout", Failing(errno.EPIPE))
    parser = tool.Parser("prepare", "")
    assert tool.run(parser, lambda _: print("a line", flush=True), []) == 0

    def fail(*_, **__):
        print("a line", flush=True)
        raise UserError("x", "y", status=75)

    assert tool.run(parser, fail, []) == 2
    monkeypatch.setattr(config_program.app, "run", fail)
    with pytest.raises(SystemExit) as ended:
        config_program.run(fail, "", ["main"])
    assert ended.value.code == 75
    assert selfcheck.main(["--unknown"]) == 2


SCRIPT = """
import sys
from types import SimpleNamespace
from bt_jax.cli import tool
def command(_):
    for _ in range(5):
        print("a line")
    with open(sys.argv[1], "w") as file:
        file.write(str(file.fileno()))
sys.exit(tool.run(tool.Parser("prepare", ""), command, []))
"""


def ended(tmp_path, how="", stdout=None):
    """(status, stderr) of SCRIPT under a shell's redirections, and whether its file has a number of its own."""
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" "$2" {how}', sys.executable, SCRIPT, tmp_path / "file"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        text=True,
    )
    return done.returncode, done.stderr, int((tmp_path / "file").read_text()) > 2


@pytest.mark.parametrize("how", [">&-", ">&- 2>&- <&-", ">/dev/full 2>&1"])
def test_the_exit_status_without_a_terminal(tmp_path, how):
    """No new file gets the number of a closed stream."""
    assert ended(tmp_path, how) == (0, "", True)


def test_the_exit_status_with_a_closed_pipe(tmp_path):
    """Also for the last flush of the interpreter."""
    reader, writer = os.pipe()
    os.close(reader)
    status, said, _ = ended(tmp_path, stdout=writer)
    os.close(writer)
    assert status == 0 and said.startswith("bt_jax: nothing can be written to stdout") and said.count("\n") == 1
    status, said, _ = ended(tmp_path, ">/dev/full")
    assert status == 0 and "No space left on device" in said and said.count("\n") == 1


@pytest.fixture
def now(monkeypatch):
    """The clock of messages, which stands still until it is set."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(messages, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


def test_a_heartbeat_says_that_a_call_still_lasts(now, monkeypatch, capsys):
    """Every 15 seconds in a file, until it is stopped."""
    heartbeat = messages.Heartbeat(messages.Ongoing(10), lambda seconds: f"still compiling, {seconds} s")

    def wait(seconds):
        now.seconds += seconds
        return now.seconds > 34

    monkeypatch.setattr(heartbeat._ended, "wait", wait)
    heartbeat.start()
    heartbeat.stop()
    assert capsys.readouterr().out == "still compiling, 15 s\nstill compiling, 30 s\n"


def test_work_is_announced_and_still_lasts_until_its_end(now, monkeypatch, capsys):
    beats = []
    monkeypatch.setattr(messages.Heartbeat, "start", lambda self: beats.append(self))
    monkeypatch.setattr(messages.Heartbeat, "stop", lambda self: beats.append("stop"))
    with pytest.raises(UserError), messages.during("writing the report"):
        assert capsys.readouterr().out == "writing the report\n"
        assert beats[0]._text(15) == "still writing the report, 15 s" and len(beats) == 1
        raise UserError("The disk is full", "Free some.")
    assert beats[1:] == ["stop"]


def test_a_part_and_the_whole_take_turns(now, capsys):
    """The line of either delays that of the other; a part that starts late delays none."""
    with messages.Ongoing() as whole:
        now.seconds = 10
        with messages.Ongoing() as part:
            for now.seconds in (15, 20, 29.5, 30):
                part.update(1, lambda: f"part {now.seconds}")
                whole.update(1, lambda: f"whole {now.seconds}")
        now.seconds = 44
        whole.update(1, lambda: f"whole {now.seconds}")
    now.seconds = 100
    messages.Ongoing().update(1, lambda: "other work, which starts now")
    assert capsys.readouterr().out == "part 15\npart 29.5\nwhole 44\n"


def test_items_are_counted(now, capsys):
    for item in messages.progress([0, 10, 14, 15, 20], "checking train", 1000):
        now.seconds = item + 1
    assert capsys.readouterr().out == "checking train: 4 of 1,000\n"


def test_warnings_go_to_stderr(capsys):
    for text in ("WARNING: a", "b"):
        messages.say(text)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("b\n", "WARNING: a\n")
