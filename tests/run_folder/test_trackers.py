"""Trackers get the lines of metrics.jsonl; nothing of theirs ends a run. The real packages are tested if installed."""

import json
import struct
import threading
import urllib.parse

import jax
import pytest

from bt_jax.config import keys
from bt_jax.messages import UserError
from bt_jax.run_folder import metrics_log, trackers
from tests.support.counted_run import lines, run
from tests.support.runs import changed


def settings(**values):
    return keys.read(changed(keys.pretrain(), **{f"log.{name}": value for name, value in values.items()}))


class Server:
    """A tracker that keeps what it gets."""

    def __init__(self):
        self.opened, self.got, self.ended = [], [], []

    def __call__(self, place, run, folder, settings, keep):
        self.opened.append((place, run))
        keep(run or "r1")
        return self

    def write(self, step, values, seconds):
        self.got.append({"step": step} | dict(values))

    def close(self, *, failed):
        self.ended.append(failed)


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(trackers, "_MLflow", server)
    return server


def test_a_tracker_gets_every_line_of_a_run(tmp_path, monkeypatch, server):
    run(tmp_path, monkeypatch, **{"log.mlflow": "http://x"})
    assert server.got == lines(tmp_path) and len(server.got) > 9
    assert server.opened == [("http://x", "")] and server.ended == [False]
    assert json.loads((tmp_path / trackers.NAME).read_text()) == {"mlflow": {"place": "http://x", "run": "r1"}}


def test_a_resumed_run_continues_without_repeating(tmp_path, monkeypatch, server):
    """A run that was killed at step 7 resumes from step 4; another store gets a run of its own."""
    every = settings(mlflow="http://x")

    def write(first_step, *pairs, to=every):
        log = metrics_log.RunLog(tmp_path, first_step=first_step, trackers=trackers.start(tmp_path, to))
        for step, values in pairs:
            log.write(step, values)
        log.close()

    write(0, (2, {"loss": 3.0}), (4, {"loss": 2.0}), (6, {"loss": 1.0}))  # killed before the evaluation of step 6
    write(4, (6, {"loss": 1.0}), (6, {"top1": 0.5}), (8, {"loss": 0.5}))
    assert server.opened == [("http://x", ""), ("http://x", "r1")]
    assert server.got[3:] == [{"step": 6, "top1": 0.5}, {"step": 8, "loss": 0.5}]
    write(4, (6, {"loss": 1.0}), to=settings(mlflow="http://y"))
    assert server.opened[2] == ("http://y", "") and server.got[5:] == [{"step": 6, "loss": 1.0}]


def test_a_run_that_fails_is_marked(tmp_path, monkeypatch, server):
    run(tmp_path, monkeypatch, bad=lambda step: 9, nonfinite_limit=2, **{"log.mlflow": "http://x"})
    assert server.ended == [True]


@pytest.mark.parametrize("where", ["_open", "write", "close"])
def test_an_unreachable_server_is_one_warning(tmp_path, monkeypatch, capsys, server, where):
    """At the start, later, and at the end; the run has its lines and ends as usual."""

    def fail(*_, **named):
        raise ConnectionError("no route\nto host")

    if where == "_open":
        monkeypatch.setattr(trackers, "_MLflow", fail)
    else:
        monkeypatch.setattr(server, where, fail)
    events = run(tmp_path, monkeypatch, **{"log.mlflow": "http://x"})
    warnings = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert warnings == ["WARNING: mlflow (http://x): no route to host; the run continues without this tracker"]
    assert lines(tmp_path)[-1]["step"] == 10 and events[-1] == "wait"


def test_a_server_without_an_answer_delays_no_step(tmp_path, monkeypatch, capsys, server):
    """The end waits for it, but not for ever."""
    answer = threading.Event()
    monkeypatch.setattr(server, "write", lambda *_: answer.wait())
    monkeypatch.setattr(trackers, "SECONDS_TO_CLOSE", 0)
    run(tmp_path, monkeypatch, **{"log.mlflow": "http://x"})
    answer.set()
    assert "no answer for 0 s" in capsys.readouterr().err and lines(tmp_path)[-1]["step"] == 10


def test_only_the_first_process_has_trackers(tmp_path, monkeypatch, server):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert trackers.start(tmp_path, settings(mlflow="http://x")) == [] and not server.opened


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_at_the_start(monkeypatch, name):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=f"needs the package {name}.*Run pip install {name}, or leave out"):
        trackers.check(settings(**{name: "mine"}).log)
    trackers.check(settings().log)


# The real packages ----------------------------------------------------------------------------------------------------


def two_starts(tmp_path, **place):
    """Trains to step 6, is killed, resumes from step 4; returns the second start's warnings."""
    every = settings(**place)
    for first_step, steps in ((0, (2, 4, 6)), (4, (6, 8))):
        log = metrics_log.RunLog(tmp_path, first_step=first_step, trackers=trackers.start(tmp_path, every))
        for step in steps:
            log.write(step, {"train/loss": 10.0 - step, "val/x": float("nan")})
        log.close()


def test_mlflow(tmp_path, capsys):
    """In a local database."""
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install -e '.[mlflow]'")
    pytest.importorskip("alembic", reason="mlflow-skinny has no databases: pip install -e '.[mlflow]'")
    from mlflow.tracking import MlflowClient

    place = f"sqlite:///{urllib.parse.quote(str(tmp_path))}/mlflow.db"
    two_starts(tmp_path, mlflow=place)
    assert "WARNING" not in capsys.readouterr().err
    client = MlflowClient(place)
    (found,) = client.search_runs([client.get_experiment_by_name("bt_jax").experiment_id])
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(2, 8.0), (4, 6.0), (6, 4.0), (8, 2.0)]
    assert found.info.run_name == tmp_path.name and found.info.status == "FINISHED"
    assert found.data.params["optim.name"] == "lars" and found.data.params["objective.lambd"] == "0.0051"


def wandb_records(data: bytes) -> list[bytes]:
    """The records of a .wandb file: LevelDB's log format, in blocks of 32 kB, behind a header of 7 bytes."""
    records, at = [], 7
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:  # padding
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])  # behind the checksum
        part = data[at + 7 : at + 7 + length]
        records = [*records, part] if kind in (1, 2) else [*records[:-1], records[-1] + part]  # 1: whole, 2: first
        at += 7 + length
    return records


def test_wandb(tmp_path, monkeypatch, capsys):
    """Offline, where every start writes a file of its own for the same run."""
    pytest.importorskip("wandb", reason="wandb is not installed: pip install -e '.[wandb]'")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    two_starts(tmp_path, wandb="project")
    assert "WARNING" not in capsys.readouterr().err
    found, ids = [], set()
    for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")):
        for data in wandb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add((record.run.project, record.run.run_id))
            if record.HasField("history"):
                items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                found.append((items["step"], items["train/loss"]))
    assert found == [(2, 8.0), (4, 6.0), (6, 4.0), (8, 2.0)]
    assert ids == {("project", json.loads((tmp_path / trackers.NAME).read_text())["wandb"]["run"])}
