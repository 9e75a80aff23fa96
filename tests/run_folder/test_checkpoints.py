"""Checkpoints: after any damage a run resumes from the newest intact one and reports the reason."""

import dataclasses
import errno
import json
import os
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import bt_jax
from bt_jax import sharding
from bt_jax.messages import UserError
from bt_jax.run_folder import manifest
from bt_jax.run_folder.checkpoints import Checkpoints
from bt_jax.weights import load
from tests.support import damage
from tests.support.damage import reopened


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "run"
    return folder, damage.write_run(folder)


@pytest.fixture
def run(written, tmp_path):
    """A run folder with intact checkpoints of steps 1 and 2, and their states."""
    shutil.copytree(written[0], tmp_path / "run")
    return tmp_path / "run", written[1]


def newest(folder):
    return folder / "checkpoints" / "2"


def largest(folder, part):
    return max((path for path in (folder / part).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_save_and_restore_are_bit_equal(run):
    folder, (older, newer) = run
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 2
    assert damage.equal(checkpoints.restore(older, 2), newer) and not damage.equal(older, newer)


def test_a_checkpoint_with_other_parts_is_an_error(run):
    """For example one of a release with the classifier in another part."""
    folder, (older, _) = run
    more = {"params": older.params | {"classifier": {}}, "batch_stats": older.batch_stats | {"classifier": {}}}
    with pytest.raises(UserError, match="^Checkpoint 2 in .* has no classifier: another release wrote it"):
        reopened(folder).restore(dataclasses.replace(older, **more), 2)


@pytest.mark.parametrize("way", damage.WAYS)
@pytest.mark.parametrize("part", ["encoder", "projector", "train", "model"])
def test_a_damaged_checkpoint_is_reported_and_quarantined(run, part, way, capsys):
    folder, (older, newer) = run
    path = largest(newest(folder), part)
    way(path)
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 1 and damage.equal(checkpoints.restore(newer, 1), older)
    said = capsys.readouterr().err
    assert f"checkpoint 2 is damaged ({manifest.short(path.relative_to(newest(folder)))} " in said
    assert (folder / "damaged" / "2" / "encoder").is_dir() and not newest(folder).exists()
    checkpoints.save(newer)  # the resumed run reaches this step again
    checkpoints.close()
    assert damage.equal(reopened(folder).restore(older, 2), newer)


def test_a_step_damaged_twice_is_quarantined_twice(run):
    folder, (_, newer) = run
    for _ in range(2):
        damage.flip(largest(newest(folder), "train"))
        checkpoints = reopened(folder)
        checkpoints.save(newer)
        checkpoints.close()
    assert sorted(path.name for path in (folder / "damaged").iterdir()) == ["2", "2-1"]


def test_without_an_intact_checkpoint_the_run_does_not_restart(run):
    folder, _ = run
    for step in ("1", "2"):
        damage.truncate(largest(folder / "checkpoints" / step, "train"))
    with pytest.raises(UserError, match=r"(?s)intact \(2: train/.* instead of .*; 1: train/"):
        reopened(folder)
    assert newest(folder).exists() and not (folder / "damaged").exists()


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "no manifest.json: an earlier version of bt_jax"),
        ({"format": 3, "files": {}}, "it has format 3, but this version of bt_jax reads format 2"),
        ({"files": {}}, "manifest.json is damaged"),
    ],
)
def test_formats_of_other_versions_are_named(run, content, said):
    path = newest(run[0]) / manifest.NAME
    path.unlink()
    if content is not None:
        path.write_text(json.dumps(content))
    assert manifest.find_damage(newest(run[0])).startswith(said)
    with pytest.raises(UserError, match=said):
        bt_jax.load_encoder(newest(run[0]))


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"format": 2}']
    + [f'{{"format": 2, "files": {files}}}' for files in ("[]", "null", "{}")]
    + ['{"format": 2, "files": {"encoder/x": 1}}', '{"format": 2, "files": {"": [1, "a"]}}', "[" * 100_000],
)
def test_an_invalid_manifest(run, content):
    (newest(run[0]) / manifest.NAME).write_text(content)
    assert manifest.find_damage(newest(run[0])) == "manifest.json is damaged"


def test_everything_is_on_disk_before_the_manifest(tmp_path, monkeypatch):
    names = {"encoder/d/file", "encoder/_METADATA", "encoder/manifest.ocdbt", "model/metadata"}
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    synced, sync = [], os.fsync

    def spy(descriptor):
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    manifest.write(tmp_path)
    assert set(synced[:-2]) == names | {"encoder", "encoder/d", "model"}
    assert synced[-2:] == [".manifest.json.tmp", "."]


def test_an_interrupted_save_does_not_count(run):
    folder, (older, newer) = run
    newest(folder).rename(folder / "checkpoints" / "2.orbax-checkpoint-tmp")
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 1 and damage.equal(checkpoints.restore(newer, 1), older)
    checkpoints.save(newer)
    checkpoints.close()
    assert damage.equal(reopened(folder).restore(older, 2), newer)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["1", "2"]


def test_no_folder_has_its_name_before_its_manifest(run, monkeypatch):
    """Otherwise a power failure between the two would leave an incomplete checkpoint that looks intact."""
    folder, (older, _) = run
    seen, write = [], manifest.write

    def spy(path):
        seen.append((path.name, (folder / "checkpoints" / "3").exists()))
        write(path)

    monkeypatch.setattr(manifest, "write", spy)
    checkpoints = reopened(folder)
    checkpoints.save(damage.random_state(3))
    checkpoints.close()
    assert [exists for _, exists in seen] == [False] and seen[0][0].startswith("3.")
    assert reopened(folder).latest() == 3


def test_a_failed_save_is_reported_and_the_previous_one_is_intact(run, monkeypatch):
    folder, (_, newer) = run

    def fail(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = reopened(folder)
    monkeypatch.setattr(manifest, "write", fail)
    checkpoints.save(damage.random_state(3))
    with pytest.raises(UserError, match="The disk is full"):
        checkpoints.wait()
    checkpoints = reopened(folder)
    assert checkpoints.latest() == 2 and damage.equal(checkpoints.restore(newer, 2), newer)


def test_the_number_of_kept_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path, model=damage.MODEL, keep_last=2, keep_every=2)
    for step in range(1, 6):
        checkpoints.save(damage.random_state(step))
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]


# --------------------------------------------------------------------------------------------------- the encoder alone


def same(variables, state):
    pairs = zip(jax.tree.leaves(variables), jax.tree.leaves(state.encoder()), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_encoder_from_run_and_step(run):
    folder, (older, newer) = run
    net, variables = bt_jax.load_encoder(folder)
    assert net.arch == "resnet18" and same(variables, newer)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))
    assert same(bt_jax.load_encoder(folder / "checkpoints" / "1")[1], older)
    assert same(bt_jax.load_encoder(str(folder / "checkpoints"))[1], newer)


def test_encoder_on_devices(run):
    folder, (_, newer) = run
    everywhere = NamedSharding(sharding.make_mesh(), PartitionSpec())
    _, variables = bt_jax.load_encoder(folder, sharding=everywhere)
    assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(variables)) and same(variables, newer)


def test_encoder_of_a_damaged_checkpoint(run, capsys):
    folder, (older, newer) = run
    damage.flip(largest(newest(folder), "train"))
    assert same(bt_jax.load_encoder(folder)[1], newer)  # the part of the optimizer is not read
    damage.flip(largest(newest(folder), "encoder"))
    assert same(bt_jax.load_encoder(folder)[1], older)
    assert "checkpoint 2" in capsys.readouterr().err
    with pytest.raises(UserError, match="is damaged: encoder/"):
        bt_jax.load_encoder(newest(folder))
    assert newest(folder).is_dir()  # a reader does not clean up


def test_projector(run):
    folder, (_, newer) = run
    found = load.load_projector(folder)
    assert np.array_equal(found["params"]["fc0"]["kernel"], newer.params["projector"]["fc0"]["kernel"])
    assert np.array_equal(found["batch_stats"]["bn0"]["mean"], newer.batch_stats["projector"]["bn0"]["mean"])


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="There is no file or folder"):
        bt_jax.load_encoder(tmp_path / "nowhere")
    (tmp_path / "checkpoints" / "²").mkdir(parents=True)  # a digit, but not a number
    with pytest.raises(UserError, match="There is no checkpoint of bt_jax in"):
        bt_jax.load_encoder(tmp_path)


def test_photographs_by_year_are_no_checkpoints(tmp_path):
    for year in ("2024", "2025"):
        (tmp_path / year).mkdir()
        (tmp_path / year / "1.jpg").touch()
    with pytest.raises(UserError, match="There is no checkpoint of bt_jax in .*Name a run folder or one of its"):
        bt_jax.load_encoder(tmp_path)


def test_a_reader_without_an_intact_checkpoint_names_no_workdir(tmp_path):
    """Also of a checkpoint of an earlier version, which has no manifest."""
    (tmp_path / "checkpoints" / "2" / "model").mkdir(parents=True)
    for path in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(UserError, match=r"No checkpoint .* is intact \(2: no manifest.json.*name another run or a"):
            bt_jax.load_encoder(path)
