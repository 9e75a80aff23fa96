"""Run folders in a bucket, against a stand-in for Cloud Storage (benchmarks/bucket.py)."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import bt_jax
from benchmarks import damage
from bt_jax import checkpoint, convert, log, sharding, storage
from bt_jax.data.records import Broken
from bt_jax.errors import TRY_AGAIN, UserError

MODEL = {"build": damage.BUILD, "mean": [0.5], "std": [0.25]}


@pytest.fixture
def folder(bucket):
    """A folder of the bucket, which is empty before."""
    bucket.objects.clear()
    return storage.path("gs://bucket/runs/mine")


def reopened(folder):
    return checkpoint.Checkpoints(folder, model=MODEL)


def change(bucket, name, way):
    """Damages an object without the client's help."""
    content, generation = bucket.objects[name]
    if way == "delete":
        del bucket.objects[name]
    else:
        content = content[: len(content) // 2] if way == "truncate" else bytes([content[0] ^ 1]) + content[1:]
        bucket.objects[name] = (content, generation + 1)


def largest(bucket, prefix):
    return max(
        (name for name in bucket.objects if name.startswith(prefix)), key=lambda name: len(bucket.objects[name][0])
    )


# ---------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("text", ["gs://bucket", "gs://bucket/", "gs:///runs", "s3://bucket/runs", "http://host/runs"])
def test_other_addresses_are_refused(text):
    with pytest.raises(UserError, match="is neither a path nor gs://BUCKET/FOLDER"):
        storage.path(text)


def test_without_gcsfs_it_says_so(monkeypatch):
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    storage._file_system.cache_clear()
    with pytest.raises(UserError, match=r"gcsfs, which is not installed. Run pip install -e '.\[gcs\]'"):
        storage.path("gs://bucket/runs")


@pytest.mark.parametrize("where", ["local", "bucket"])
def test_here_and_there_say_the_same(where, folder, tmp_path):
    root = tmp_path if where == "local" else folder
    for name, content in {"a": "one", "in/b": b"two", "in/deep/c": ""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        storage.write(root / name, "old")
        storage.write(root / name, content)
    assert [name for name, _ in storage.files_below(root)] == ["a", "in/b", "in/deep/c"]
    assert [storage.size(path) for _, path in storage.files_below(root)] == [3, 3, 0]
    # The CRC-32C of nothing is 0 by definition; the others are google_crc32c's.
    assert [storage.checksum(path) for _, path in storage.files_below(root)] == ["2a94b2e9", "52d8b3a3", "00000000"]
    storage.move(root / "in", root / "other" / "out")
    assert [name for name, _ in storage.files_below(root)] == ["a", "other/out/b", "other/out/deep/c"]
    assert (root / "other" / "out" / "b").read_bytes() == b"two" and not (root / "in").exists()
    assert storage.absolute(root / "a") == root / "a" and storage.in_bucket(root) == (where == "bucket")


def test_what_must_be_here_is_refused_there(folder, bucket, capsys):
    assert convert.main([str(folder), "--to=torch", "--out=gs://bucket/x"]) == 2
    storage.write(folder / "x.safetensors", b"x")
    assert convert.main([f"{folder}/x.safetensors", "--to=torch", "--out=x"]) == 2
    said = capsys.readouterr().err
    assert "gs://bucket/x is not on this machine" in said and "only checkpoints are read. Copy it" in said


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("answer, status", [(403, 2), (401, 2), (418, TRY_AGAIN)])
def test_a_bucket_that_refuses_is_told_in_one_line(folder, bucket, monkeypatch, answer, status):
    monkeypatch.setattr(bucket, "refuses", answer)
    with pytest.raises(UserError, match="The bucket cannot be reached: ") as told:
        bt_jax.load_encoder(folder)
    assert told.value.status == status and ("gcloud auth" in told.value.cure) == (status == 2)


def test_no_such_bucket():
    with pytest.raises(UserError, match="There is no bucket for gs://other/runs/a"):
        storage.write(storage.path("gs://other/runs/a"), "")


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_checkpoints_go_out_and_come_in_bit_equal(folder, bucket):
    older, newer = damage.write_run(folder)
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 2 and damage.equal(checkpoints.restore(older, 2), newer)
    everywhere = NamedSharding(sharding.make_mesh(), PartitionSpec())
    for path, state, at in (folder, newer, None), (f"{folder}/checkpoints/1", older, everywhere):
        _, variables = bt_jax.load_encoder(path, sharding=at)
        pairs = zip(jax.tree.leaves(variables), jax.tree.leaves(state.encoder()), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    assert all(name.startswith("runs/mine/checkpoints/") for name in bucket.objects)


@pytest.mark.parametrize("way", ["truncate", "flip", "delete"])
def test_a_damaged_one_is_named_set_aside_and_passed_over(folder, bucket, way, capsys):
    older, newer = damage.write_run(folder)
    name = largest(bucket, "runs/mine/checkpoints/2/train/")
    change(bucket, name, way)
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 1 and damage.equal(checkpoints.restore(newer, 1), older)
    said = capsys.readouterr().out
    assert "checkpoint 2 is damaged" in said and name.removeprefix("runs/mine/checkpoints/2/") in said
    assert f"moved to {folder}/damaged/2" in said
    assert any(name.startswith("runs/mine/damaged/2/encoder/") for name in bucket.objects)
    assert not any(name.startswith("runs/mine/checkpoints/2/") for name in bucket.objects)
    checkpoints.save(newer)
    checkpoints.close()
    assert damage.equal(reopened(folder).restore(older, 2), newer)


@pytest.mark.parametrize("missing", [("commit_success.txt",), ("commit_success.txt", "manifest.json")])
def test_a_save_cut_off_in_the_middle_does_not_count(folder, bucket, missing, capsys):
    """There the folder has its name from the start: what is missing is the object that is written last."""
    older, newer = damage.write_run(folder)
    for name in missing:
        del bucket.objects[f"runs/mine/checkpoints/2/{name}"]
    assert jax.tree.leaves(bt_jax.load_encoder(folder)[1])[0] is not None
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 1 and damage.equal(checkpoints.restore(newer, 1), older)
    assert "damaged" not in capsys.readouterr().out
    checkpoints.save(newer)
    checkpoints.close()
    assert damage.equal(reopened(folder).restore(older, 2), newer)


def test_the_manifest_is_there_before_the_checkpoint_counts(folder, bucket):
    """Else a machine taken away in between would leave one that cannot be told from a damaged one."""
    damage.write_run(folder)
    order = [bucket.objects[f"runs/mine/checkpoints/2/{name}"][1] for name in ("manifest.json", "commit_success.txt")]
    assert order == sorted(order)
    noted = json.loads((folder / "checkpoints/2/manifest.json").read_text())["files"]
    stored = {name.removeprefix("runs/mine/checkpoints/2/") for name in bucket.objects if "mine/checkpoints/2/" in name}
    assert {name for name in stored if "/" in name} >= noted.keys()
    assert all(len(bucket.objects[f"runs/mine/checkpoints/2/{name}"][0]) == size for name, (size, _) in noted.items())


def test_a_bucket_that_goes_away_while_saving(folder, bucket, monkeypatch):
    _, newer = damage.write_run(folder)
    checkpoints = reopened(folder)
    monkeypatch.setattr(bucket, "refuses", 403)
    with pytest.raises(UserError, match="checkpoint .*cannot be written.* earlier checkpoints are whole") as told:
        checkpoints.save(damage.random_state(3))
        checkpoints.wait()
    assert told.value.status == TRY_AGAIN
    monkeypatch.setattr(bucket, "refuses", 0)
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 2 and damage.equal(checkpoints.restore(newer, 2), newer)


# -------------------------------------------------------------------------------------------------- files that grow


def lines(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_in_the_bucket_when_they_must_be(folder, bucket):
    written = log.RunLog(folder, first_step=0)
    written.write(1, {"train/loss": 1.0})
    assert not bucket.objects  # within the first seconds
    written.sync()
    assert lines(folder) == [1]
    written.write(2, {"train/loss": 1.0})
    written.close()
    assert lines(folder) == [1, 2] and not written._folder.here.exists()
    again = log.RunLog(folder, first_step=1)
    again.write(3, {"train/loss": 1.0})
    again.close()
    assert lines(folder) == [1, 3]
    assert any(name.startswith("runs/mine/tensorboard/events") for name in bucket.objects)


def test_they_are_copied_while_it_trains(folder, bucket, monkeypatch, capsys):
    """Not at every line, as an object takes one write a second; an outage is told of and costs nothing."""
    monkeypatch.setattr(storage, "SECONDS", 0.0)
    written = log.RunLog(folder, first_step=0, tensorboard=False)
    written.write(1, {"train/loss": 1.0})
    written._folder._copying.result()
    assert lines(folder) == [1]
    monkeypatch.setattr(bucket, "refuses", 403)
    written.write(2, {"train/loss": 1.0})
    assert written._folder._copying.exception() is not None
    monkeypatch.setattr(bucket, "refuses", 0)
    written.write(3, {"train/loss": 1.0})
    written._folder._copying.result()
    assert lines(folder) == [1, 2, 3] and "WARNING: the newest lines could not" in capsys.readouterr().err
    monkeypatch.setattr(bucket, "refuses", 403)
    written.write(4, {"train/loss": 1.0})
    written.close()  # no error: another may be on its way out
    assert "WARNING: the newest lines could not" in capsys.readouterr().err


def test_broken_images_are_listed_there(folder):
    class Photographs:
        def where(self, base, number):
            return f"{base}/{number}.jpg"

    class Span:
        base, start, stop = "train", 0, 10

    broken = Broken(Photographs(), limit=0.5, say=lambda line: None)
    broken.add(Span, 3, "cut off")
    broken.list_in(folder / "broken.txt")
    broken.add(Span, 5, "cut off")
    assert [line.split(":")[0] for line in (folder / "broken.txt").read_text().splitlines()] == [
        "train/3.jpg",
        "train/5.jpg",
    ]
