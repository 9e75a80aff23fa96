"""A folder of images: what is a split, what is a class, what is kept, and what can be wrong with it."""

import os
import time

import numpy as np
import pytest

from bt_jax import prepare
from bt_jax.data.pipeline import train_batches
from bt_jax.data.sources import image_folder
from bt_jax.data.sources.broken import Broken
from bt_jax.data.sources.image_folder import FolderSource
from bt_jax.data.sources.open_source import open_source
from bt_jax.messages import UserError
from tests.support.drawn_images import encode


def write(root, *paths, value=None):
    """Images of 8 pixels at these paths, the i-th filled with i (or `value`)."""
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encode(np.full((8, 8, 3), i if value is None else value, np.uint8)))


def settle(root):
    """All folders as if left alone for a minute."""
    for path in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        os.utime(path, ns=(time.time_ns() - 60_000_000_000,) * 2)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bt_jax" / "folders"


@pytest.fixture
def root(tmp_path, cache):
    return tmp_path / "images"


def test_splits_and_classes_as_imagefolder_has_them(root):
    write(root, "train/dog/b.PNG", "train/cat/deep/a.png", "train/dog/a.png", "val/dog/c.png", "notes.txt.png")
    (root / "train" / "cat" / "readme.txt").write_text("no image")
    (root / "train" / ".hidden").mkdir()
    write(root, "train/.hidden/x.png")
    (root / "train" / "dog" / "folder.png").mkdir()
    source = open_source(None, folder=root)
    assert source.splits == {"train": 3, "val": 1} and source.class_names == ["cat", "dog"]
    assert [label for _, label in source.encoded("train")] == [0, 1, 1]
    assert source.path("train", 2) == root / "train" / "dog" / "b.PNG"
    images, labels = source.arrays("train")
    assert images[:, 0, 0, 0].tolist() == [1, 2, 0] and labels.tolist() == [0, 1, 1]
    assert source.arrays("val").labels.tolist() == [1]


@pytest.mark.parametrize(
    "paths, classes",
    [
        (("b/1.jpg", "a/2.jpg"), ["a", "b"]),
        (("1.jpg", "2.jpg"), []),  # no folders, no labels
        (("a/1.jpg", "b/2.jpg", "3.jpg"), []),  # an image that would have no label
        (("only/1.jpg", "only/2.jpg"), []),  # one class says nothing
        (("val/1.jpg", "a/2.jpg"), ["a", "val"]),  # a split needs a "train" beside it
    ],
)
def test_one_split_without_a_train_folder(root, paths, classes):
    write(root, *paths)
    source = FolderSource(root)
    assert source.splits == {"train": len(paths)} and source.class_names == classes
    assert (source.arrays("train").labels is None) == (not classes)


def test_listed_once(root, cache, monkeypatch):
    write(root, *(f"{i % 3}/{i}.png" for i in range(30)), "3/ü\udcff.png")
    settle(root)
    first = FolderSource(root)
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "_scan", lambda *_: pytest.fail("listed again"))
        again = FolderSource(root)
    assert again.splits == {"train": 31} and list(again.encoded("train")) == list(first.encoded("train"))
    write(root, "1/new.png")
    assert FolderSource(root).splits == {"train": 32}
    (root / "1" / "new.png").unlink()
    assert FolderSource(root).splits == {"train": 31}
    os.rename(root / "2", root / "7")
    assert FolderSource(root).class_names == ["0", "1", "3", "7"]


@pytest.mark.parametrize("damage", [b"", b"PK nonsense", None])
def test_a_damaged_list_is_made_anew(root, cache, damage):
    write(root, "a.png", "b.png")
    settle(root)
    FolderSource(root)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-40] if damage is None else damage)
    assert FolderSource(root).splits == {"train": 2}


def test_a_list_of_another_version_is_made_anew(root, cache, monkeypatch):
    write(root, "a.png", "b.png")
    settle(root)
    FolderSource(root)
    monkeypatch.setattr(image_folder, "CACHE_FORMAT", 2)
    monkeypatch.setattr(image_folder, "_scan", lambda *_: (["other.png"], []))
    assert FolderSource(root).splits == {"train": 1}


def test_a_file_that_arrives_while_listing_is_found_the_next_time(root, monkeypatch):
    write(root, "a/1.png", "b/2.png")
    settle(root)
    scan = image_folder._scan

    def slow(base, name):
        found = scan(base, name)
        if name == "a":
            write(root, "a/late.png")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "_scan", slow)
        assert FolderSource(root).splits == {"train": 2}
    assert FolderSource(root).splits == {"train": 3}


def test_a_folder_that_is_being_written_is_not_remembered(root, cache):
    write(root, "a/1.png")
    FolderSource(root)
    assert not cache.exists() or not list(cache.iterdir())


def test_links_between_folders(root):
    write(root, "a/1.png", "b/2.png")
    (root / "a" / "to_b").symlink_to(root / "b")
    (root / "b" / "to_a").symlink_to(root / "a")
    assert FolderSource(root).splits == {"train": 4}  # each once, and once through the other's link


def test_a_flat_split_beside_a_labelled_one(root, capsys):
    """As ILSVRC's test set: the labelled split keeps its labels."""
    write(root, "train/a/1.png", "train/b/2.png", "test/3.png")
    source = FolderSource(root)
    assert source.num_classes == 2 and source.labelled("train") and not source.labelled("test")
    assert source.arrays("train").labels.tolist() == [0, 1] and source.arrays("test").labels is None
    assert prepare.main([f"--folder={root}"]) == 0
    said = capsys.readouterr().out
    assert (
        "train: 2 images, all 8x8, 2 of 2 classes, 1 to 1 each" in said and "test: 1 images, all 8x8, no labels" in said
    )


def test_a_cache_that_cannot_be_written_is_done_without(root, tmp_path):
    write(root, "a.png")
    (tmp_path / "file").write_text("")
    assert FolderSource(root, cache=tmp_path / "file" / "below").splits == {"train": 1}


def test_a_link_that_leads_back_is_not_followed(root, tmp_path):
    write(root, "a/1.png")
    write(tmp_path / "elsewhere", "2.png")
    (root / "a" / "loop").symlink_to(root)
    (root / "b").symlink_to(tmp_path / "elsewhere")
    assert FolderSource(root).class_names == ["a", "b"] and FolderSource(root).splits == {"train": 2}


def test_wrong_folders(root, tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        FolderSource(root)
    root.mkdir()
    with pytest.raises(UserError, match="There is no image below"):
        FolderSource(root)


def test_a_folder_that_cannot_be_listed(root, monkeypatch, capsys):
    """Left out and named; looked into again at the next start, although no folder has changed."""
    write(root, "a/1.png", "b/2.png", "c/3.png")
    scan, locked = os.scandir, {"b"}

    def refused(path):
        if os.path.basename(path) in locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert FolderSource(root).splits == {"train": 2}
    assert f"Cannot list {root / 'b'}: Permission denied" in capsys.readouterr().err
    locked.clear()
    assert FolderSource(root).splits == {"train": 3}
    locked.add(root.name)
    write(root, "d/4.png")
    with pytest.raises(UserError, match="Cannot list .*/images: Permission denied"):
        FolderSource(root)


def test_written_as_shards(root, tmp_path, capsys, monkeypatch):
    """Checked, written in mixed order, and read again by its TFDS name; an interrupted write leaves nothing behind."""
    pytest.importorskip("tensorflow_datasets")
    from bt_jax.data import tfrecord_shards

    monkeypatch.setattr(tfrecord_shards, "RECORDS", 8)
    write(root, *(f"train/{'ab'[i // 10]}/{i:02d}.png" for i in range(20)), "val/b/x.png")
    assert prepare.main([f"--folder={root}", f"--shards={tmp_path}/out/mine"]) == 0
    assert "--config.data.name=mine" in capsys.readouterr().out
    stored, source = open_source("mine", data_dir=tmp_path / "out"), FolderSource(root)
    assert stored.splits == source.splits and list(stored.class_names) == ["a", "b"]
    assert len(stored.files("train")) == 3
    found = list(stored.encoded("train"))
    assert sorted(found) == sorted(source.encoded("train")) and found != list(source.encoded("train"))
    assert prepare.main([f"--folder={root}", f"--shards={tmp_path}/out/mine"]) == 2
    assert "exists already" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "read", lambda *_: (_ for _ in ()).throw(UserError("gone", "")))
        with pytest.raises(UserError, match="gone"):
            tfrecord_shards.write_shards(source, tmp_path / "out", "other", ["train"])
    assert list((tmp_path / "out" / "other").iterdir()) == []
    for name in ("My-Data", "patterns"):
        assert prepare.main([f"--folder={root}", f"--shards={tmp_path}/out/{name}"]) == 2
        assert "is no name for a data set" in capsys.readouterr().err


def test_damaged_and_vanished_files_are_named_by_their_path(root):
    pytest.importorskip("tensorflow")
    write(root, *(f"{i}.png" for i in range(8)))
    source, said = FolderSource(root), []
    (root / "3.png").write_text("a text file")
    (root / "6.png").unlink()
    batches = train_batches(
        source, "train", batch_size=8, canvas=8, seed=0, broken=Broken(source, limit=0.5, say=said.append)
    )
    batch = next(batches)
    assert dict(zip(batch["id"].tolist(), batch["image"][:, 0, 0, 0].tolist(), strict=True)) == {
        i: 0 if i in (3, 6) else i for i in range(8)
    }
    assert sorted(line.split(":")[1].split("/")[-1] for line in said) == ["3.png", "6.png"]
