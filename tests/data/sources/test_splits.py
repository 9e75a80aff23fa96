"""Slices of every kind of source, the version of a data set, and the positions of unreadable records."""

import numpy as np
import pytest

from bt_jax import prepare
from bt_jax.data.sources import patterns, tfds
from bt_jax.data.sources.base import evenly_spaced
from bt_jax.data.sources.npz import write_npz
from bt_jax.data.sources.open_source import open_source
from bt_jax.messages import UserError
from tests.support.drawn_images import Listed, encode


@pytest.mark.parametrize("split", ["train[7:12]", "train[-3:]", "train[50%:90%]"])
def test_slices_of_every_kind_of_source(npz, images, split, monkeypatch):
    """A slice has the images and labels of that range of the whole split."""
    listed = Listed([(encode(im), i % 3) for i, im in enumerate(images)])
    monkeypatch.setattr(patterns, "load", lambda split: (images, np.arange(23, dtype=np.int32) % 3))
    for source in (listed, open_source(None, npz=npz), open_source("patterns")):
        whole, (base, start, stop) = source.arrays("train"), source.span(split)
        cut = source.arrays(split)
        np.testing.assert_array_equal(cut.images, whole.images[start:stop])
        np.testing.assert_array_equal(cut.labels, whole.labels[start:stop])
        assert [label for _, label in source.encoded(split)] == whole.labels[start:stop].tolist()
        assert source.read(base, [start]) == [next(source.encoded(split))]


def test_prepare_names_images_of_a_slice_by_their_ids(images, tmp_path, capsys):
    records = [(encode(im), i % 3) for i, im in enumerate(images)]
    records[3] = records[20] = (b"\xff\xd8\xff", 0)
    write_npz(Listed(records), tmp_path / "bad.npz", ["train"])
    assert prepare.main([f"--npz_in={tmp_path / 'bad.npz'}", "--splits=train[15:]"]) == 0
    said, _ = capsys.readouterr()
    assert "train[15:]: 8 images, all 6x8" in said and "3 of 3 classes, 1 to 4 each, 1 unreadable" in said
    (named,) = [line for line in said.splitlines() if line.startswith("unreadable: ")]
    assert named.endswith("id 20: cannot identify image file")


def test_the_newest_version_is_taken(tmp_path):
    """Versions are compared as numbers. A folder without a data set is ignored."""
    for version in ("3.9.0", "3.10.0", "3.2.11", "4.0.0"):
        (tmp_path / "mine" / version).mkdir(parents=True)
        if version != "4.0.0":
            (tmp_path / "mine" / version / "dataset_info.json").write_text("{}")
    assert [folder.name for folder in tfds._versions(tmp_path / "mine")] == ["3.2.11", "3.9.0", "3.10.0"]
    assert tfds._tfds_folder("mine", tmp_path).name == "3.10.0"
    assert tfds._tfds_folder("mine:3.9.0", tmp_path).name == "3.9.0"
    with pytest.raises(UserError, match="it has 3.2.11, 3.9.0, 3.10.0"):
        tfds._tfds_folder("mine:4.0.0", tmp_path)


def test_evenly_spaced_includes_both_ends():
    assert evenly_spaced(10, 4).tolist() == [0, 3, 6, 9] and evenly_spaced(5, 0).tolist() == evenly_spaced(
        5, 9
    ).tolist() == list(range(5))


def test_an_unreadable_record_keeps_its_position(images):
    """An error takes the place of its image, and the images around it are read."""

    class Torn(Listed):
        def read(self, base, ids):
            if 17 in ids:
                raise UserError("record 17 is damaged", "Restore it.")
            return super().read(base, ids)

    source = Torn([(encode(im), i % 3) for i, im in enumerate(images)])
    found = list(source.encoded("train[15:20]"))
    assert [label for _, label in found] == [0, 1, None, 0, 1] and isinstance(found[2][0], UserError)
    assert found[3] == source.records[18]


def test_bytes_of_a_cache_file_are_those_of_the_source(npz, images):
    assert list(open_source(None, npz=npz).encoded("train")) == [(encode(im), i % 3) for i, im in enumerate(images)]


def test_a_cache_file_must_use_all_its_bytes(npz, tmp_path):
    with np.load(npz) as file:
        contents = dict(file)
    for offsets in (contents["train/offsets"][:-1], contents["train/offsets"] - 1, contents["train/offsets"][::-1]):
        np.savez(
            tmp_path / "bad.npz", **contents | {"train/offsets": offsets, "train/labels": contents["train/labels"]}
        )
        with pytest.raises(UserError, match="train/offsets does not fit train/bytes"):
            open_source(None, npz=tmp_path / "bad.npz")


def test_held_out_patterns_differ_from_training(monkeypatch):
    """No image of train is in test, because an image is a function of (split, index)."""
    monkeypatch.setattr(patterns, "COUNTS", {"train": 20, "test": 20})
    train, test = (patterns.load.__wrapped__(split)[0] for split in ("train", "test"))
    assert len({image.tobytes() for image in (*train, *test)}) == 40
