"""Run folders in a bucket, with a fake of Cloud Storage (tests/support/bucket.py)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import bt_jax
from bt_jax import convert, sharding, storage
from bt_jax.data.sources.broken import UnreadableImages
from bt_jax.messages import TRY_AGAIN, UserError
from bt_jax.run_folder import manifest, metrics_log, opening, step_folders
from tests.support import damage, runs
from tests.support.damage import reopened
from tests.support.paths import ROOT


@pytest.fixture
def folder(bucket):
    """A folder of the bucket, which is empty."""
    bucket.objects.clear()
    return storage.parse_path("gs://bucket/runs/mine")


@pytest.fixture(scope="module")
def written(bucket):
    """The objects of a run with checkpoints of steps 1 and 2, and their states."""
    bucket.objects.clear()
    states = damage.write_run(storage.parse_path("gs://bucket/runs/mine"))
    return dict(bucket.objects), states


@pytest.fixture
def states(folder, bucket, written):
    """The states of steps 1 and 2, whose checkpoints are in `folder`."""
    bucket.objects.update(written[0])
    return written[1]


def change(bucket, name, way):
    """Damages an object without the client."""
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
def test_other_addresses_are_an_error(text):
    with pytest.raises(UserError, match="is neither a path nor gs://BUCKET/FOLDER"):
        storage.parse_path(text)


@pytest.mark.parametrize("mark", "#?*[ ")
def test_special_characters_are_an_error(mark):
    """Orbax would cut the address at some of them, and gcsfs would read others as patterns when deleting."""
    with pytest.raises(UserError, match="contains .*Name the folder with letters"):
        storage.parse_path(f"gs://bucket/runs/a{mark}b")


def test_an_address_that_pathlib_has_changed(folder):
    assert storage.parse_path(Path("gs://bucket/runs/mine")) == folder and str(folder) == "gs://bucket/runs/mine"


def test_a_process_has_one_file_system_without_a_listings_cache():
    """TFDS may use it first. A cached listing would not show new files of other processes."""
    script = (
        "import bt_jax.storage as s; from etils.epath import Path, backend; Path('gs://bucket/x').exists();"
        "fs = backend.fsspec_backend.fs('gs://bucket/x'); assert fs is s._file_system();"
        "assert not fs.dircache.use_listings_cache and type(fs).__name__ == 'GCSFileSystem', type(fs)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_without_gcsfs_the_error_names_it(monkeypatch):
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    storage._file_system.cache_clear()
    with pytest.raises(UserError, match=r"gcsfs, which is not installed. Run pip install gcsfs"):
        storage.parse_path("gs://bucket/runs")


@pytest.mark.parametrize("where", ["local", "bucket"])
def test_local_and_bucket_functions_agree(where, folder, tmp_path):
    root = tmp_path if where == "local" else folder
    for name, content in {"a": "one", "in/b": lambda file: file.write(b"two"), "in/deep/c": ""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        storage.write(root / name, "old")
        storage.write(root / name, content)
    names, found = storage.files_below(root), storage.contents(root)
    assert names == ["a", "in/b", "in/deep/c"] and found("b") is None
    assert [found(name)[0] for name in names] == [storage.size(root / name) for name in names] == [3, 3, 0]
    # The CRC-32C of no bytes is 0 by definition; the other values are from google_crc32c.
    assert [found(name)[1]() for name in names] == ["2a94b2e9", "52d8b3a3", "00000000"]
    assert storage.is_dir(root / "in") and not storage.is_dir(root / "a") and not storage.is_dir(root / "b")
    assert storage.read(root / "in/b") == b"two" and storage.read(root / "b") is None
    storage.move(root / "in", root / "other" / "out")
    assert storage.files_below(root) == ["a", "other/out/b", "other/out/deep/c"]
    assert (root / "other" / "out" / "b").read_bytes() == b"two" and not (root / "in").exists()
    assert storage.absolute(root / "a") == root / "a" and storage.in_bucket(root) == (where == "bucket")


def test_local_files_in_a_bucket_are_an_error(folder, bucket, capsys):
    assert convert.main([str(folder), "--to=torch", "--out=gs://bucket/x"]) == 2
    storage.write(folder / "x.safetensors", b"x")
    assert convert.main([f"{folder}/x.safetensors", "--to=torch", "--out=x"]) == 2
    said = capsys.readouterr().err
    assert "gs://bucket/x is not on this machine" in said and "reads checkpoints only. Copy it" in said


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("answer, status", [(403, 2), (401, 2), (418, TRY_AGAIN)])
def test_a_bucket_error_gives_one_line(folder, bucket, monkeypatch, answer, status):
    monkeypatch.setattr(bucket, "refuses", answer)
    with pytest.raises(UserError, match="The bucket cannot be reached: ") as told:
        bt_jax.load_encoder(folder)
    assert told.value.status == status and ("gcloud auth" in told.value.fix) == (status == 2)


def test_no_such_bucket():
    with pytest.raises(UserError, match="There is no bucket for gs://other/runs/a"):
        storage.write(storage.parse_path("gs://other/runs/a"), "")
    with pytest.raises(UserError, match="There is no bucket other"):
        opening.open_folder("gs://other/runs/a", {"seed": 0})


def test_the_rights_that_orbax_needs_are_checked_before_training(folder, bucket, monkeypatch):
    monkeypatch.setattr(bucket, "hidden", True)
    with pytest.raises(
        UserError, match="may not read the metadata of bucket bucket: .* roles/storage.legacyBucketReader"
    ):
        opening.open_folder(str(folder), {"seed": 0})
    assert not bucket.objects


def test_an_outage_is_not_damage(folder, bucket, monkeypatch, states):
    monkeypatch.setattr(bucket, "refuses", 403)
    for look in (step_folders.has_checkpoints, manifest.find_damage, storage.is_dir, storage.read, reopened):
        with pytest.raises(OSError, match="Forbidden"):
            look(folder / "checkpoints/2" if look is manifest.find_damage else folder)


def test_the_program_prints_one_line(bucket, monkeypatch):
    monkeypatch.setattr(bucket, "refuses", 403)
    command = ["-m", "bt_jax.main", "--config=configs/quickstart.py:smoke", "--workdir=gs://bucket/runs/mine"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "bt_jax: The bucket cannot be reached: Forbidden" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_checkpoints_in_a_bucket_are_bit_equal(folder, bucket, states):
    older, newer = states
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 2 and damage.equal(checkpoints.restore(older, 2), newer)
    everywhere = NamedSharding(sharding.make_mesh(), PartitionSpec())
    for path, state, at in (folder, newer, None), (f"{folder}/checkpoints/1", older, everywhere):
        _, variables = bt_jax.load_encoder(path, sharding=at)
        pairs = zip(jax.tree.leaves(variables), jax.tree.leaves(state.encoder()), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    assert all(name.startswith("runs/mine/checkpoints/") for name in bucket.objects)


@pytest.mark.parametrize("way", ["truncate", "flip", "delete"])
def test_a_damaged_checkpoint_is_reported_and_quarantined(folder, bucket, way, capsys, states):
    older, newer = states
    name = largest(bucket, "runs/mine/checkpoints/2/train/")
    change(bucket, name, way)
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 1 and damage.equal(checkpoints.restore(newer, 1), older)
    said = capsys.readouterr().err
    part = PurePosixPath(name.removeprefix("runs/mine/checkpoints/2/"))
    assert f"checkpoint 2 is damaged ({manifest.short(part)} " in said
    assert f"moved to {folder}/damaged/2" in said
    assert any(name.startswith("runs/mine/damaged/2/encoder/") for name in bucket.objects)
    assert not any(name.startswith("runs/mine/checkpoints/2/") for name in bucket.objects)
    checkpoints.save(newer)
    checkpoints.close()
    assert damage.equal(reopened(folder).restore(older, 2), newer)


def test_an_interrupted_save_does_not_count(folder, bucket, capsys, states):
    """In a bucket the folder has its name from the start, and the last objects are missing."""
    older, newer = states
    for name in ("commit_success.txt", "manifest.json"):
        del bucket.objects[f"runs/mine/checkpoints/2/{name}"]
    np.testing.assert_array_equal(
        jax.tree.leaves(bt_jax.load_encoder(folder)[1])[0], jax.tree.leaves(older.encoder())[0]
    )
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 1 and damage.equal(checkpoints.restore(newer, 1), older)
    assert "damaged" not in capsys.readouterr().err
    assert not [name for name in bucket.objects if name.startswith("runs/mine/checkpoints/2/")]
    checkpoints.save(newer)
    checkpoints.close()
    assert damage.equal(reopened(folder).restore(older, 2), newer)


@pytest.mark.parametrize("copied", [False, True])
def test_a_checkpoint_with_its_manifest_counts(folder, bucket, copied, states):
    """Without Orbax's markers: an interrupted save, or a copy from a disk, where older Orbax writes none in parts."""
    older, newer = states
    for name in [name for name in bucket.objects if name.endswith("commit_success.txt")]:
        if copied or name.count("/") == 4:
            del bucket.objects[name]
    for step in ("1", "2") if copied else ():
        file = folder / "checkpoints" / step / "manifest.json"
        noted = json.loads(file.read_text())
        noted["files"] = {name: facts for name, facts in noted["files"].items() if "commit_success" not in name}
        storage.write(file, json.dumps(noted))
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 2 and damage.equal(checkpoints.restore(older, 2), newer)
    assert damage.equal(checkpoints.restore(newer, 1), older)


def test_the_manifest_is_written_before_the_checkpoint_counts(folder, bucket, states):
    """Otherwise a preemption between the two would leave a checkpoint that looks damaged."""
    order = [bucket.objects[f"runs/mine/checkpoints/2/{name}"][1] for name in ("manifest.json", "commit_success.txt")]
    assert order == sorted(order)
    noted = json.loads((folder / "checkpoints/2/manifest.json").read_text())["files"]
    stored = {name.removeprefix("runs/mine/checkpoints/2/") for name in bucket.objects if "mine/checkpoints/2/" in name}
    assert {name for name in stored if "/" in name} >= noted.keys()
    assert all(len(bucket.objects[f"runs/mine/checkpoints/2/{name}"][0]) == size for name, (size, _) in noted.items())


def test_a_bucket_that_fails_while_saving(folder, bucket, monkeypatch, states):
    _, newer = states
    checkpoints = reopened(folder)
    monkeypatch.setattr(bucket, "refuses", 403)
    with pytest.raises(UserError, match="checkpoint .*cannot be written: Forbidden.* Give this account access") as told:
        checkpoints.save(damage.random_state(3))
        checkpoints.wait()
    assert told.value.status == 2
    monkeypatch.setattr(bucket, "refuses", 0)
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 2 and damage.equal(checkpoints.restore(newer, 2), newer)


# -------------------------------------------------------------------------------------------------- files for appending


def lines(folder):
    return [line["step"] for line in runs.read_lines(folder)]


def test_lines_are_in_the_bucket_after_a_sync(folder, bucket):
    written = metrics_log.RunLog(folder, first_step=0)
    written.write(1, {"train/loss": 1.0})
    assert not bucket.objects  # in the first seconds
    written.sync()
    assert lines(folder) == [1]
    before = dict(bucket.objects)
    written.sync()
    assert bucket.objects == before  # an unchanged file is not written again
    written.write(2, {"train/loss": 1.0})
    written.close()
    assert lines(folder) == [1, 2] and not written._folder.local.exists()
    again = metrics_log.RunLog(folder, first_step=1)
    again.write(3, {"train/loss": 1.0})
    again.close()
    assert lines(folder) == [1, 3]
    assert any(name.startswith("runs/mine/tensorboard/events") for name in bucket.objects)


def test_lines_are_copied_during_training(folder, bucket, monkeypatch, capsys):
    """Not for every line, because an object takes one write a second. An outage is a warning and loses no line."""
    monkeypatch.setattr(storage, "COPY_INTERVAL_SECONDS", 0.0)
    written = metrics_log.RunLog(folder, first_step=0, tensorboard=False)
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
    written.close()  # no error, which could replace another one
    said, kept = capsys.readouterr().err, written._folder.local
    assert "WARNING: the newest lines could not" in said and f"The newest lines are in {kept}" in said
    assert (kept / "metrics.jsonl").read_text().count("\n") == 4
    shutil.rmtree(kept)


def test_unreadable_images_are_listed_in_the_bucket(folder, bucket, monkeypatch):
    class Photographs:
        def where(self, base, number):
            return f"{base}/{number}.jpg"

    class Span:
        base, start, stop = "train", 0, 10

    monkeypatch.setattr(storage, "COPY_INTERVAL_SECONDS", 0.5)
    broken = UnreadableImages(Photographs(), limit=0.5, say=lambda line: None)
    broken.add(Span, 3, "cut off")
    broken.write_to(folder / "broken.txt")
    broken.add(Span, 4, "cut off")
    broken.add(Span, 5, "cut off")
    assert (folder / "broken.txt").read_text().count("\n") == 1  # not for every image
    broken._later.join()
    assert [line.split(":")[0] for line in (folder / "broken.txt").read_text().splitlines()] == [
        "train/3.jpg",
        "train/4.jpg",
        "train/5.jpg",
    ]
