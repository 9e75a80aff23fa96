"""A folder of images: its splits and classes, links in it, and its errors."""

import pytest

from bt_jax import prepare
from bt_jax.data.pipeline import train_batches
from bt_jax.data.sources.broken import UnreadableImages
from bt_jax.data.sources.image_folder import FolderSource
from bt_jax.data.sources.open_source import open_source
from bt_jax.messages import UserError
from bt_jax.terminal import interrupts
from tests.support.drawn_images import write_images


def test_splits_and_classes_equal_those_of_imagefolder(root):
    write_images(root, "train/dog/b.PNG", "train/cat/deep/a.png", "train/dog/a.png", "val/dog/c.png", "notes.txt.png")
    (root / "train" / "cat" / "readme.txt").write_text("no image")
    (root / "train" / ".hidden").mkdir()
    write_images(root, "train/.hidden/x.png")
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
        (("a/1.jpg", "b/2.jpg", "3.jpg"), []),  # an image without a label
        (("only/1.jpg", "only/2.jpg"), []),  # one class is no information
    ],
)
def test_one_split_without_a_train_folder(root, paths, classes):
    write_images(root, *paths)
    source = FolderSource(root)
    assert source.splits == {"train": len(paths)} and source.class_names == classes
    assert (source.arrays("train").labels is None) == (not classes)


def test_links_between_folders(root):
    write_images(root, "a/1.png", "b/2.png")
    (root / "a" / "to_b").symlink_to(root / "b")
    (root / "b" / "to_a").symlink_to(root / "a")
    assert FolderSource(root).splits == {"train": 4}  # each once, and once more through the other's link


def test_a_flat_split_beside_a_labelled_one(root, capsys):
    """Like ILSVRC's test set: the labelled split keeps its labels."""
    write_images(root, "train/a/1.png", "train/b/2.png", "test/3.png")
    source = FolderSource(root)
    assert source.num_classes == 2 and source.labelled("train") and not source.labelled("test")
    assert source.arrays("train").labels.tolist() == [0, 1] and source.arrays("test").labels is None
    assert prepare.main([f"--folder={root}"]) == 0
    said = capsys.readouterr().out
    assert (
        "train: 2 images, all 8x8, 2 of 2 classes, 1 to 1 each" in said and "test: 1 images, all 8x8, no labels" in said
    )


def test_a_link_to_a_parent_folder_is_not_followed(root, tmp_path):
    write_images(root, "a/1.png")
    write_images(tmp_path / "elsewhere", "2.png")
    (root / "a" / "loop").symlink_to(root)
    (root / "b").symlink_to(tmp_path / "elsewhere")
    assert FolderSource(root).class_names == ["a", "b"] and FolderSource(root).splits == {"train": 2}


def test_wrong_folders(root, tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        FolderSource(root)
    (tmp_path / "one.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="one.jpg is a file. Name the folder"):
        FolderSource(tmp_path / "one.jpg")
    root.mkdir()
    with pytest.raises(UserError, match="There is no image below"):
        FolderSource(root)


def test_written_as_shards(root, tmp_path, capsys, monkeypatch):
    """prepare writes a folder in mixed order, and its TFDS name reads it. An interrupted write leaves no file."""
    pytest.importorskip("tensorflow_datasets")
    from bt_jax.data import tfrecord_shards

    monkeypatch.setattr(tfrecord_shards, "RECORDS", 8)
    write_images(root, *(f"train/{'ab'[i // 10]}/{i:02d}.png" for i in range(20)), "val/b/x.png")
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
        patch.setattr(FolderSource, "try_read", lambda *_: (_ for _ in ()).throw(UserError("gone", "")))
        with pytest.raises(UserError, match="gone"):
            tfrecord_shards.write_shards(source, tmp_path / "out", "other", ["train"])
    assert list((tmp_path / "out" / "other").iterdir()) == []
    left = []

    def tidied(*_):
        for tidy in interrupts._unfinished:
            tidy()
        left.extend((tmp_path / "out" / "other").iterdir())
        raise UserError("gone", "")

    monkeypatch.setattr(tfrecord_shards, "_write_split", tidied)  # what Ctrl-C does
    with pytest.raises(UserError, match="gone"):
        tfrecord_shards.write_shards(source, tmp_path / "out", "other", ["train"])
    assert left == []
    refused = {"My-Data": "'My-Data' is not a data set name", "patterns": "'patterns' is the name of the embedded"}
    for name, message in refused.items():
        assert prepare.main([f"--folder={root}", f"--shards={tmp_path}/out/{name}"]) == 2
        assert message in capsys.readouterr().err


def test_damaged_and_missing_files_are_named_by_their_path(root):
    pytest.importorskip("tensorflow")
    write_images(root, *(f"{i}.png" for i in range(8)))
    source, said = FolderSource(root), []
    (root / "3.png").write_text("a text file")
    (root / "6.png").unlink()
    batches = train_batches(
        source, "train", batch_size=8, canvas=8, seed=0, broken=UnreadableImages(source, limit=0.5, say=said.append)
    )
    batch = next(batches)
    assert dict(zip(batch["id"].tolist(), batch["image"][:, 0, 0, 0].tolist(), strict=True)) == {
        i: 0 if i in (3, 6) else i for i in range(8)
    }
    assert sorted(line.split(":")[1].split("/")[-1] for line in said) == ["3.png", "6.png"]
