"""Several processes: comparison of settings, a common stop, and the exit of all if one fails or falls silent."""

import contextlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from bt_jax.messages import TRY_AGAIN, UserError
from bt_jax.processes import coordination, exits, join, watchdog
from bt_jax.processes.stop_signals import StopSignals
from bt_jax.processes.watchdog import Phase
from tests.support import scenes
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """played(scene) -> [(status, output, errors) of both processes]; status None: the process had to be killed."""
    root = tmp_path_factory.mktemp("scenes")
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.support.scenes", str(root), *scenes.SCENES]
    running = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        assert running.wait(timeout=120) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)

    def of(scene, process):
        status, *texts = (root / scene / f"{process}.{name}" for name in ("status", "out", "err"))
        return int(status.read_text()) if status.exists() else None, *(text.read_text() for text in texts)

    return lambda scene: [of(scene, process) for process in range(2)]


def findings(found):
    assert [status for status, *_ in found] == [0, 0], found
    return [json.loads(out.splitlines()[-1]) for _, out, _ in found]


@pytest.fixture(scope="module")
def talked(played):
    return findings(played("talk"))


def test_every_process_gets_all_values(talked):
    assert all(found["gathered"] == [[0, "x"], [1, "x"]] for found in talked)


def test_differences_are_named_on_every_process(talked):
    for found in talked:
        assert found["agreed"] == ""
        assert "process 1 on" in found["disagreed"] and "rate 1.1 not 0.1" in found["disagreed"]
        assert "extra 1 not absent" in found["disagreed"] and "images" not in found["disagreed"]


def test_all_processes_need_one_run_folder(talked):
    for found in talked:
        assert found["shared"] == "" and "process 1 on" in found["apart"] and "not the same folder" in found["apart"]
        assert not any("together" in name for name in found["left"])


def test_a_signal_in_the_last_window_stops_all(played):
    assert findings(played("late")) == [{"before": False, "after": True, "signal": int(signal.SIGUSR1)}] * 2


def test_all_stop_at_one_step(talked):
    """The hosts are several windows apart, and only the slow one receives the signal."""
    steps = {found["stopped_at"] for found in talked}
    assert len(steps) == 1 and steps.pop() >= 30
    assert [found["signal"] for found in talked] == [signal.SIGUSR1] * 2


def test_a_missing_process_is_named(talked):
    assert "Process 1 of 2 did not reach dinner within 1 s" in talked[0]["absent"]


@pytest.mark.parametrize("process", [0, 1])
def test_a_silent_process_ends_the_others(played, process):
    """Also process 0, which hosts the key-value store, so that no heartbeat arrives."""
    found = played(f"silent/{process}")
    assert found[process][0] is None
    status, _, error = found[1 - process]
    assert status == TRY_AGAIN and re.search(
        rf"process {process}( on \S+)? has been silent", error
    )  # its host, if a heartbeat arrived


def test_a_finished_process_does_not_count_as_silent(played):
    assert [status for status, *_ in played("unequal")] == [0, 0]


def test_a_broken_collective_exits_with_the_first_status(played):
    found = played("broken")
    assert [status for status, *_ in found] == [2, 2]
    assert "process 1 on" in found[0][2] and "There is no folder /x" in found[0][2]


def test_an_error_of_one_process_ends_all_with_its_status(played):
    found = played("mistake")
    assert [status for status, *_ in found] == [2, 2]
    assert "process 1 on" in found[0][2] and "There is no folder /x. Name another" in found[0][2]


def test_an_agreed_stop_keeps_its_status(played):
    assert [status for status, *_ in played("stop")] == [143, 143]


def test_a_single_process_waits_for_nothing(tmp_path):
    assert coordination.gather(3, barrier="nothing") == [3] and not coordination.is_multi_process()
    join.check_identical({"rate": 0.1})
    join.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="Options are missing: --processes, --process"):
        join.start("localhost:1", None, None)


def test_a_stall_ends_the_process_with_its_stacks():
    script = (
        "import time; from bt_jax.processes import watchdog\nwatchdog.START_SECONDS, watchdog.BEAT_SECONDS = 0, 0.1\n"
        "watchdog.begin(stuck_seconds=1, silent_seconds=9)\n"
        "for step in range(4): watchdog.report_progress(step, watchdog.Phase.TRAINING); time.sleep(0.3)\n"
        "def here_it_hangs(): time.sleep(60)\nhere_it_hangs()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == TRY_AGAIN
    assert "in here_it_hangs" in done.stderr and "training at step 3" in done.stderr  # not earlier: there were steps


class Clock:
    """A fake of `time` and of the watchdog's event: an hour passes at once.

    Attributes:
      ended: reasons of the watchdog to end the process.
    """

    def __init__(self, monkeypatch):
        self._now, self._until, self.ended = 0.0, 0.0, []
        monkeypatch.setattr(watchdog, "time", self)
        monkeypatch.setattr(watchdog, "START_SECONDS", 0)
        monkeypatch.setattr(watchdog.Watch, "_end", lambda _, status, why: self.ended.append(why))
        monkeypatch.setattr(watchdog.threading.Thread, "start", lambda _: None)

    def monotonic(self):
        return self._now

    def wait(self, seconds):
        self._now += seconds
        return self._now > self._until or bool(self.ended)

    def go_on(self, seen, seconds):
        """Runs the watchdog for this time."""
        seen._done, self._until = self, self._now + seconds
        seen._check()


def test_evaluating_may_take_long(monkeypatch):
    clock = Clock(monkeypatch)
    seen = watchdog.Watch(stuck_seconds=5, silent_seconds=9)
    seen.report_progress(3, Phase.EVALUATING, "KNN", None)
    clock.go_on(seen, 3600)
    assert clock.ended == []
    seen.report_progress(3, Phase.TRAINING, "", None)
    clock.go_on(seen, 4)
    assert clock.ended == []
    clock.go_on(seen, 4)
    assert "no step for 6 s" in clock.ended[0]


def test_progress_of_another_process_counts(monkeypatch):
    """The first process to finish compiling waits for the last, and a collective waits for its slowest host."""

    class Store:
        other = {"host": "b", "step": 3, "phase": Phase.TRAINING, "detail": "", "waited": 0.0}
        key_value_set = staticmethod(lambda *_, **__: None)

        def key_value_dir_get(self, folder):
            return [(f"{folder}1", json.dumps(self.other))] if "beat" in folder else []

    clock, store = Clock(monkeypatch), Store()
    for name, value in {"is_multi_process": True, "process": 0, "processes": 2, "store": store}.items():
        monkeypatch.setattr(coordination, name, lambda value=value: value)
    monkeypatch.setattr(exits, "exit_notices", lambda: {})
    seen = watchdog.Watch(stuck_seconds=6, silent_seconds=99)
    seen.report_progress(3, Phase.TRAINING, "", None)
    for step in range(4, 8):
        clock.go_on(seen, 4)
        store.other = store.other | {"step": step}
        seen._exchange(step, last=False)
    assert clock.ended == []
    clock.go_on(seen, 8)
    assert "Process 0 on " in clock.ended[0] and " is behind the others: " in clock.ended[0]


@pytest.mark.parametrize("told", [{"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}, {"preempted": "TRUE"}, {}])
def test_notices_of_compute_engine(monkeypatch, capsys, told):
    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            key = self.path.rpartition("/")[2]
            assert self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(told.get(key, {"maintenance-event": "NONE", "preempted": "FALSE"}[key]).encode())
            asked.append(key)

        def log_message(self, *_):
            pass

    asked: list[str] = []
    server = http.server.HTTPServer(("localhost", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"localhost:{server.server_port}")
    stop = StopSignals(0)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not stop.signal and not (not told and len(asked) >= 2):
            time.sleep(0.05)
        assert stop.requested_before(0, 1) == bool(told) and stop.signal == (signal.SIGTERM if told else 0)
    finally:
        stop.close()
        server.shutdown()
    assert not told or next(iter(told.values())) in capsys.readouterr().out


@pytest.mark.parametrize("shown, asked", [("0", [0]), ("0,1,2,3", None), ("", None)])
def test_the_only_gpu_of_a_slurm_task_is_number_0(monkeypatch, shown, asked):
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **options: given.update(options))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    join.start("localhost:1", 4, 3)
    assert given["local_device_ids"] is None
    monkeypatch.setenv("SLURM_LOCALID", "3")
    join.start("localhost:1", 4, 3)
    assert given["local_device_ids"] == asked


@pytest.mark.parametrize(
    "text, lost",
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", True),
        ("UNAVAILABLE: connection lost", True),
        ("RESOURCE_EXHAUSTED: out of memory", False),
    ],
)
def test_a_lost_connection_is_distinguished_from_other_errors(text, lost):
    assert exits._is_of_a_collective(jax.errors.JaxRuntimeError(text)) == lost
    assert exits._is_of_a_collective(ValueError(text)) == ("Gloo" in text)
    assert not exits._is_of_a_collective(KeyError(text))
