"""Locks of run folders. Open files and hand-written lock files simulate other processes."""

import errno
import fcntl
import json
from types import SimpleNamespace

import pytest

from bt_jax.config import arguments, keys
from bt_jax.messages import TRY_AGAIN, UserError
from bt_jax.processes import coordination, exits
from bt_jax.run_folder import lock, opening

OTHER = {"host": "another-host", "process": 4711}
CONFIG = arguments.to_dict(keys.pretrain())


@pytest.fixture(autouse=True)
def released(monkeypatch):
    """The tests do not wait, and no lock remains."""
    monkeypatch.setattr(lock, "time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: 0.0))


def held_by_another(folder):
    """Locks the folder until it is closed."""
    folder.mkdir(exist_ok=True)
    file = (folder / lock.NAME).open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(json.dumps(OTHER))
    file.flush()
    return file


def without_locks(monkeypatch, number=errno.ENOLCK):
    """Simulates a file system without locks."""

    def fail(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", fail)


def test_a_second_start_gets_the_name_of_the_holder(tmp_path):
    folder = tmp_path / "run"
    with held_by_another(folder):
        for start in (
            lambda: opening.check_folder(str(folder), "evaluate"),
            lambda: opening.open_folder(str(folder), CONFIG),
        ):
            with pytest.raises(UserError, match="run is in use: process 4711 on another-host writes to it") as caught:
                start()
            assert caught.value.status == 2
        assert [path.name for path in folder.iterdir()] == [lock.NAME]
    opening.open_folder(str(folder), CONFIG)  # its process was killed and has left the file


def test_the_folder_is_held_until_the_run_ends(tmp_path):
    @lock.releasing
    def run(fail):
        opening.open_folder(str(tmp_path), CONFIG)
        opening.open_folder(str(tmp_path), CONFIG)  # the process that holds it may open it
        with (tmp_path / lock.NAME).open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert json.loads((tmp_path / lock.NAME).read_text()).keys() == OTHER.keys()
        if fail:
            raise KeyboardInterrupt

    run(fail=False)
    with pytest.raises(KeyboardInterrupt):
        run(fail=True)
    assert not (tmp_path / lock.NAME).exists()
    held_by_another(tmp_path).close()


def test_a_file_that_its_holder_has_just_deleted_is_not_a_lock(tmp_path, monkeypatch):
    flock, opened = fcntl.flock, []

    def delete_first(descriptor, how):
        flock(descriptor, how)
        opened.append(descriptor)
        if len(opened) == 1:
            (tmp_path / lock.NAME).unlink()

    monkeypatch.setattr(fcntl, "flock", delete_first)
    lock.hold(tmp_path)
    assert len(opened) == 2 and (tmp_path / lock.NAME).exists()


def test_the_first_process_of_a_run_holds_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(coordination, "process", lambda: 1)
    with held_by_another(tmp_path):
        lock.check_free(tmp_path)
        lock.hold(tmp_path)


def test_an_unwritable_folder_gives_one_line(tmp_path):
    (tmp_path / lock.NAME).mkdir()
    with pytest.raises(UserError, match="Nothing can be written to .*: Is a directory"):
        lock.hold(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_renewed_file_holds_the_folder(tmp_path, monkeypatch, number):
    without_locks(monkeypatch, number)
    file = tmp_path / lock.NAME
    file.write_text(json.dumps(OTHER | {"beat": 1}))
    moments = iter(range(1000))

    def beat(_):
        file.write_text(json.dumps(OTHER | {"beat": next(moments)}))

    monkeypatch.setattr(lock, "time", SimpleNamespace(sleep=beat, monotonic=lambda: 0.0))
    with pytest.raises(UserError, match="process 4711 on another-host"):
        lock.hold(tmp_path)
    assert json.loads(file.read_text())["process"] == OTHER["process"]


def test_without_locks_an_old_file_does_not_count(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    (tmp_path / lock.NAME).write_text(json.dumps(OTHER))
    moments = iter((0.0, 1.0, lock.WATCH_SECONDS + 1))
    monkeypatch.setattr(lock, "time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: next(moments)))
    lock.hold(tmp_path)
    assert "token" in json.loads((tmp_path / lock.NAME).read_text()) and next(moments, None) is None
    lock.release()
    assert not (tmp_path / lock.NAME).exists()


def test_without_locks_the_later_of_two_simultaneous_starts_wins(tmp_path, monkeypatch):
    without_locks(monkeypatch)

    def other_writes(_):
        (tmp_path / lock.NAME).write_text(json.dumps(OTHER | {"token": "another"}))

    monkeypatch.setattr(lock, "time", SimpleNamespace(sleep=other_writes, monotonic=lambda: 0.0))
    with pytest.raises(UserError, match="another-host"):
        lock.hold(tmp_path)


def test_a_process_that_lost_its_folder_exits(tmp_path, monkeypatch, capsys):
    without_locks(monkeypatch)
    lock.hold(tmp_path)
    beats, ended = lock._held[str(tmp_path)], []
    monkeypatch.setattr(exits, "exit_now", ended.append)
    beats._renew_once(1)
    assert json.loads((tmp_path / lock.NAME).read_text())["beat"] == 1 and not ended
    (tmp_path / lock.NAME).write_text(json.dumps(OTHER | {"token": "another"}))
    beats._renew_once(2)
    assert ended == [TRY_AGAIN] and "process 4711 on another-host" in capsys.readouterr().err
    lock.release()
    assert (tmp_path / lock.NAME).exists()  # the file of the other process


def test_the_lock_of_a_bucket_is_an_object(bucket):
    bucket.objects.clear()
    folder = opening.open_folder("gs://bucket/runs/held", CONFIG)
    content, _ = bucket.objects[f"runs/held/{lock.NAME}"]
    assert {"host", "process", "token", "beat"} == json.loads(content).keys()
    opening.check_folder(str(folder), "pretrain")
    lock.release()
    assert f"runs/held/{lock.NAME}" not in bucket.objects
