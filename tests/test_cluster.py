"""Several processes: what they compare, how they stop at one step, and how one that fails or falls silent ends all."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from bt_jax import cluster, watch
from bt_jax.errors import TRY_AGAIN, UserError
from bt_jax.stopping import Stop

SCRIPT = Path(__file__).with_name("together.py")


def together(scene, folder, *, ends=(0, 1)):
    """Runs a scene of `together.py` in two processes -> [(status, what was said)] of those that are waited for."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1]), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), scene, address, str(process), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        said = [running[process].communicate(timeout=120) for process in ends]
    finally:
        for process in running:
            process.kill()
    return [(running[process].returncode, *texts) for process, texts in zip(ends, said, strict=True)]


@pytest.fixture(scope="module")
def talked(tmp_path_factory):
    found = together("talk", tmp_path_factory.mktemp("talk"))
    assert [status for status, *_ in found] == [0, 0], found
    return [json.loads(out.splitlines()[-1]) for _, out, _ in found]


def test_everybody_gets_everybodys_value(talked):
    assert all(found["gathered"] == [[0, "x"], [1, "x"]] for found in talked)


def test_what_differs_is_named_on_every_process(talked):
    for found in talked:
        assert found["agreed"] == ""
        assert "process 1 on" in found["disagreed"] and "rate 1.1 not 0.1" in found["disagreed"]
        assert "extra 1 not absent" in found["disagreed"] and "images" not in found["disagreed"]


def test_a_run_folder_must_be_one(talked):
    for found in talked:
        assert found["shared"] == "" and "process 1 on" in found["apart"] and "not the same folder" in found["apart"]
        assert not any("together" in name for name in found["left"])


def test_a_signal_in_the_last_window_stops_all(tmp_path):
    told = [json.loads(out.splitlines()[-1]) for _, out, _ in together("late", tmp_path)]
    assert told == [{"before": False, "after": True, "signal": int(signal.SIGUSR1)}] * 2


def test_all_stop_at_one_step(talked):
    """The hosts are windows apart, and the signal reaches the slow one alone."""
    steps = {found["stopped_at"] for found in talked}
    assert len(steps) == 1 and steps.pop() >= 30
    assert [found["signal"] for found in talked] == [signal.SIGUSR1] * 2


def test_who_does_not_come_is_named(talked):
    assert "Process 1 of 2 did not come to dinner within 1 s" in talked[0]["absent"]


@pytest.mark.parametrize("process", [0, 1])
def test_a_silent_process_ends_the_others(tmp_path, process):
    """Also process 0, which keeps what they tell each other, so that nobody hears anything any more."""
    ((status, _, error),) = together("silent", tmp_path / str(process), ends=(1 - process,))
    assert status == TRY_AGAIN and f"process {process} on" in error and "silent" in error


def test_who_is_through_is_not_silent(tmp_path):
    assert [status for status, *_ in together("unequal", tmp_path)] == [0, 0]


def test_a_broken_collective_has_the_status_of_who_broke_it(tmp_path):
    found = together("broken", tmp_path)
    assert [status for status, *_ in found] == [2, 2]
    assert "process 1 on" in found[0][2] and "There is no folder /x" in found[0][2]


def test_a_mistake_of_one_ends_all_with_its_status(tmp_path):
    found = together("mistake", tmp_path)
    assert [status for status, *_ in found] == [2, 2]
    assert "process 1 on" in found[0][2] and "There is no folder /x. Name another" in found[0][2]


def test_an_agreed_stop_keeps_its_status(tmp_path):
    assert [status for status, *_ in together("stop", tmp_path)] == [143, 143]


def test_alone_nothing_is_asked(tmp_path):
    assert cluster.gather(3, what="nothing") == [3] and not cluster.several()
    cluster.agree({"rate": 0.1})
    cluster.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="--processes and --process not given"):
        cluster.start("localhost:1", None, None)


def test_a_standstill_ends_the_process_with_its_stacks():
    script = (
        "import time; from bt_jax import watch\nwatch.START_SECONDS = 0\n"
        "watch.begin(stuck_seconds=1.5, silent_seconds=9)\n"
        "for step in range(4): watch.at(step, 'training'); time.sleep(1)\n"
        "def here_it_hangs(): time.sleep(60)\nhere_it_hangs()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == TRY_AGAIN
    assert "in here_it_hangs" in done.stderr and "training at step 3" in done.stderr  # not before: steps were taken


def test_judging_may_take_long(monkeypatch):
    ended = []
    monkeypatch.setattr(watch.Watch, "_end", lambda self, status, why: ended.append(why))
    monkeypatch.setattr(watch, "START_SECONDS", 0)
    seen = watch.Watch(stuck_seconds=0.5, silent_seconds=9)
    seen.at(3, "judging (KNN)", None)
    time.sleep(2.5)
    early = list(ended)
    seen.at(3, "training", None)
    time.sleep(2.5)
    seen.stop()
    assert early == [] and "no step" in ended[0]


def test_while_another_gets_on_nobody_is_stuck(monkeypatch):
    """Who is first through with compiling waits for the last, and a collective waits for its slowest host."""

    class Store:
        other = {"host": "b", "step": 3, "doing": "training", "waited": 0.0}
        key_value_set = staticmethod(lambda *_, **__: None)

        def key_value_dir_get(self, folder):
            return [(f"{folder}1", json.dumps(self.other))] if "beat" in folder else []

    ended, store = [], Store()
    for name, value in {"several": True, "process": 0, "store": store}.items():
        monkeypatch.setattr(cluster, name, lambda value=value: value)
    monkeypatch.setattr(watch.Watch, "_end", lambda self, status, why: ended.append(why))
    monkeypatch.setattr(watch, "START_SECONDS", 0)
    monkeypatch.setattr(watch, "BEAT_SECONDS", 0.1)
    seen = watch.Watch(stuck_seconds=0.6, silent_seconds=9)
    seen.at(3, "training", None)
    for step in range(4, 8):
        time.sleep(0.4)
        store.other = store.other | {"step": step}
    early = list(ended)
    time.sleep(1.2)
    seen.stop()
    assert early == [] and "Behind is process 0" in ended[0]


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
    stop = Stop(0)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not stop.signal and not (not told and len(asked) >= 2):
            time.sleep(0.05)
        assert stop.before(0, 1) == bool(told) and stop.signal == (signal.SIGTERM if told else 0)
    finally:
        stop.close(0)
        server.shutdown()
    assert not told or next(iter(told.values())) in capsys.readouterr().out


@pytest.mark.parametrize("shown, asked", [("0", [0]), ("0,1,2,3", None), ("", None)])
def test_the_only_gpu_that_slurm_shows_is_number_0(monkeypatch, shown, asked):
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **options: given.update(options))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    cluster.start("localhost:1", 4, 3)
    assert given["local_device_ids"] is None
    monkeypatch.setenv("SLURM_LOCALID", "3")
    cluster.start("localhost:1", 4, 3)
    assert given["local_device_ids"] == asked


@pytest.mark.parametrize(
    "text, lost",
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", True),
        ("UNAVAILABLE: connection lost", True),
        ("RESOURCE_EXHAUSTED: out of memory", False),
    ],
)
def test_a_lost_connection_is_told_from_other_faults_of_the_runtime(text, lost):
    assert cluster._is_of_a_collective(jax.errors.JaxRuntimeError(text)) == lost
    assert cluster._is_of_a_collective(ValueError(text)) == ("Gloo" in text)
    assert not cluster._is_of_a_collective(KeyError(text))
