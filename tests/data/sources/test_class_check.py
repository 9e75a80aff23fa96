"""Slices with different classes are reported, and slices of a mixed split hold a part of every class."""

import numpy as np
import pytest

from bt_jax import prepare
from bt_jax.data.sources.class_check import compare
from bt_jax.data.sources.image_folder import FolderSource
from bt_jax.data.sources.npz import NpzSource, write_npz
from bt_jax.data.sources.open_source import open_source
from bt_jax.data.sources.selection import class_balanced_fraction, mixed_order, unmixed, with_mixed
from bt_jax.messages import UserError
from tests.support.drawn_images import Listed, encode, write_images


@pytest.fixture
def source(root):
    """A split of 40 images, sorted into four classes, and another split with a fifth class."""
    write_images(root, *(f"train/{'abcd'[i // 10]}/{i:02}.png" for i in range(40)), "val/a/1.png", "val/e/2.png")
    return FolderSource(root)


def test_slices_of_one_split_with_other_classes(source):
    found = compare(source, "train[:75%]", "train[75%:]")
    assert found.cause == "10 images of train[75%:] are of classes that no image of train[:75%] has: d"
    assert found.fix.startswith('Name "train.mixed[:75%]" and "train.mixed[75%:]"')
    found = compare(source, "train[:10]+val", "train[10:30]")
    assert found.cause == "20 images of train[10:30] are of classes that no image of train[:10]+val has: b, c"


@pytest.mark.parametrize(
    "train, val, said",
    [
        ("train", "val", "1 image of val is of classes that no image of train has: e"),
        ("train", "train[35:]", "train[35:] has no image of 3 of the 4 classes of train: a, b, c"),
        ("train[:90%]", "train[90%:]", "train[90%:] has no image of 3 of the 4 classes of train[:90%]: a, b, c"),
        ("train+val", "val[:1]", "val[:1] has no image of 4 of the 5 classes of train+val: b, c, d, e"),
    ],
)
def test_different_classes_of_separate_splits_have_no_fix(source, train, val, said):
    assert compare(source, train, val) == (said, "")


@pytest.mark.parametrize(
    "train, val", [("train", ""), ("train", "train"), ("train", "val[:1]"), ("train[::]", "train")]
)
def test_the_same_classes(source, train, val):
    if train == "train[::]":
        with pytest.raises(UserError, match="is not understood"):
            compare(source, train, val)
    else:
        assert compare(source, train, val) is None


def test_slices_of_other_data_sets(root, tmp_path):
    """The check uses available labels, and reads those of records only if allowed."""
    pixel = encode(np.zeros((2, 2, 3), np.uint8))
    sorted_records = [(pixel, i // 10) for i in range(40)]
    write_npz(Listed(sorted_records, class_names=list("wxyz")), tmp_path / "x.npz", ["train"])
    assert "has: z" in compare(NpzSource(tmp_path / "x.npz"), "train[:75%]", "train[75%:]").cause
    listed = Listed(sorted_records)
    assert compare(listed, "train[:75%]", "train[75%:]") is None
    assert "has: 3" in compare(listed, "train[:75%]", "train[75%:]", read=True).cause
    assert compare(open_source("patterns"), "train[:64]", "test[:40]") is None
    assert "has: stripes" in compare(open_source("patterns"), "train[1:3]", "test[:3]").cause
    assert compare(Listed([(pixel, None)] * 9), "train[:3]", "train[3:]", read=True) is None
    part = class_balanced_fraction(listed, "train", 0.5)
    assert compare(part, "share[:10]", "share[10:]", read=True) is not None


def test_a_mixed_split_holds_the_same_part_of_every_class(source, root):
    mixed = with_mixed(source, ["train.mixed[:75%]", "train.mixed[75%:]", "val", ""])
    assert mixed.splits == {"train": 40, "val": 2, "train.mixed": 40}
    counts = [np.bincount(mixed.arrays(f"train.mixed[{cut}]").labels, minlength=5).tolist() for cut in (":75%", "75%:")]
    assert counts == [[8, 8, 7, 7, 0], [2, 2, 3, 3, 0]]
    assert [mixed.file("train.mixed", i) for i in range(5)] == [
        f"train/{c}/{n}.png" for c, n in [("a", "00"), ("b", "10"), ("c", "20"), ("d", "30"), ("a", "01")]
    ]
    assert mixed.where("train.mixed", 4) == str(root / "train/a/01.png") and mixed.file("val", 1) == "val/e/2.png"
    images = mixed.arrays("train.mixed").images[:, 0, 0, 0]
    assert sorted(images) == list(range(40)) and images[:4].tolist() == [0, 10, 20, 30]
    assert compare(mixed, "train.mixed[:75%]", "train.mixed[75%:]") is None
    few = compare(mixed, "train.mixed[:3]", "train.mixed[3:]")
    assert "has: d" in few.cause and few.fix.startswith("Make the slices larger")
    assert prepare.main([f"--folder={root}", "--splits=train.mixed[75%:]"]) == 0


def test_the_order_of_a_mixed_split_is_frozen():
    """A change would silently alter every run on a mixed split. Classes alternate in proportion to their sizes."""
    assert mixed_order(np.repeat([0, 1], [2, 6])).tolist() == [2, 0, 3, 4, 5, 1, 6, 7]
    assert mixed_order(np.full(4, -1)).tolist() == [0, 1, 2, 3] and mixed_order(np.zeros(0, int)).tolist() == []
    labels = np.random.default_rng(0).integers(0, 7, 1000)
    order = mixed_order(labels)
    assert sorted(order) == list(range(1000))
    for start in range(0, 1000, 100):
        share = np.bincount(labels[order[start : start + 100]], minlength=7) / np.bincount(labels)
        assert np.abs(share - 0.1).max() < 0.01
    assert all(np.diff(order[labels[order] == label]).min() > 0 for label in range(7))


def test_an_existing_split_called_mixed_is_used(root, tmp_path):
    source = with_mixed(Listed([(b"", 0)] * 3), ["train.mixed", "gone.mixed[:1]", "mixed"])
    assert source.splits == {"train": 3, "train.mixed": 3}
    with pytest.raises(UserError, match="has no split 'gone.mixed'"):
        source.span("gone.mixed[:1]")
    write_npz(source, tmp_path / "mixed.npz", ["train.mixed"])
    stored = with_mixed(NpzSource(tmp_path / "mixed.npz"), ["train.mixed[1:]"])
    assert stored.splits == {"train.mixed": 3} and unmixed(stored, "train.mixed") == "train.mixed"
    assert unmixed(source, "train.mixed") == "train" and unmixed(source, "train") == "train"


def test_a_split_that_is_read_in_sequence_is_not_mixed(source, monkeypatch):
    monkeypatch.setattr(type(source), "random_access", lambda self, base: False)
    assert with_mixed(source, ["train[:75%]"]) is source
    with pytest.raises(UserError, match="can only be read in sequence from its storage, but 'train.mixed' is"):
        with_mixed(source, ["train.mixed[:75%]"])
