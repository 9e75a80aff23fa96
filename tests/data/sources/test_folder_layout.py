"""The rule that makes folders splits or classes, and the notes about it."""

import re

import pytest

from bt_jax import prepare
from bt_jax.data.sources.folder_layout import NAMED, arrange, arrange_as_0_1_0
from bt_jax.data.sources.image_folder import FolderSource
from tests.support.drawn_images import write_images


def files(*folders: str) -> list[str]:
    """Two images in each folder; "" is the root."""
    return sorted(f"{folder}/{i}.jpg".removeprefix("/") for folder in folders for i in range(2))


@pytest.mark.parametrize(
    "folders, splits",
    [
        (("train/a", "train/b", "val/a", "val/b"), {"train": 4, "val": 4}),
        (("Train/a", "Val/a"), {"train": 2, "val": 2}),
        (("TRAIN", "TEST", "Valid"), {"test": 2, "train": 2, "valid": 2}),
        (("training", "validation", "testing"), {"testing": 2, "training": 2, "validation": 2}),
        (("train2017", "val2017", "unlabeled2017"), {"train2017": 2, "unlabeled2017": 2, "val2017": 2}),
        (("training_set/a", "test_set/a"), {"test_set": 2, "training_set": 2}),
        (("train/a", "train/b"), {"train": 4}),
        (("test/a", "test/b"), {"test": 4}),
        (("val/a", "test/a"), {"test": 2, "val": 2}),
        (("train", "Train", "val"), {"Train": 2, "train": 2, "val": 2}),  # two folders of one name
    ],
)
def test_folders_that_are_splits(folders, splits):
    found = arrange(files(*folders))
    assert {split: len(paths) for split, (_, paths) in found.splits.items()} == splits
    assert not any("left out" in line for line in found.lines) and not found.label_lines
    renamed = {folder.partition("/")[0] for folder in folders} - splits.keys()
    assert bool(renamed) == bool(found.lines) and all(f"images of {folder})" in found.lines[0] for folder in renamed)


@pytest.mark.parametrize(
    "folders, said",
    [
        (
            ("bus", "car", "train", "tram"),
            "car, train, tram; train among them: it is not a split, because bus and 2 more are",
        ),
        (
            ("bus", "test", "val"),
            "bus, test, val; test, val among them: they are not splits, because bus is beside them",
        ),
        (("2023", "2024", "2025"), "taking 3 top folders as labels: 2023, 2024, 2025"),
        (("trainer", "tests", "values"), "taking 3 top folders as labels: tests, trainer, values"),
        (("extra", "unlabeled"), "taking 2 top folders as labels: extra, unlabeled"),
        (tuple("abcdefghijk"), "taking 11 top folders as labels: a, b, c, d, e, f, g, h, and 3 more"),
        (("only/a", "only/b"), "no labels: all images are in one folder, only; name that folder to take its 2 sub-"),
        (("only",), "no labels: all images are in one folder, only"),
        (("", "a", "b"), "WARNING: 2 of 6 images of train are in no sub-folder (0.jpg ...), so sub-folders are not"),
        (("images/train", "masks/train"), "taking 2 top folders as labels: images, masks"),
    ],
)
def test_folders_that_are_not_splits(folders, said):
    """All images are one split, and a line names the meaning of the folders."""
    found = arrange(files(*folders))
    assert found.splits == {"train": ("", files(*folders))}
    assert not found.lines and len(found.label_lines) == 1 and said in found.label_lines[0]
    taken = "as labels" in said or "among them" in said
    assert taken == (found.label_hint == "; to pretrain without labels: --config.data.labels=False")


@pytest.mark.parametrize(
    "folders, splits, said",
    [
        (("train/a", "val/a", "samples"), {"train": 2, "val": 2}, "2 images beside the splits train, val are left out"),
        (("bus", "car", "train", "Test"), {"test": 2, "train": 2}, "4 images .* left out: 2 in bus, 2 in car"),
        (("", "train/a", "val/a"), {"train": 2, "val": 2}, "2 images .* left out: 2 in no folder"),
        (("", "train/a", "train/b"), {"train": 4}, "2 images .* left out: 2 in no folder"),
        (("", "x/train", "x/val"), {"train": 6}, "WARNING: 2 of 6 images of train are in no sub-folder"),
        (("train", "train/a", "val"), {"train": 4, "val": 2}, "2 of 4 images of train are in no sub-folder"),
    ],
)
def test_images_that_are_left_out_are_counted(folders, splits, said):
    found = arrange(files(*folders))
    assert {split: len(paths) for split, (_, paths) in found.splits.items()} == splits
    line = [*found.lines, *found.label_lines][-1]
    assert re.search(said, line) and line.startswith("WARNING: ")


def test_a_note_names_few_of_many_folders():
    others = [f"other{i:02}" for i in range(NAMED + 2)]
    (line,) = arrange(files("train", "val", *others)).lines
    assert f"{2 * len(others)} images beside" in line and line.endswith("2 in other07, and 2 more")


@pytest.mark.parametrize(
    "folders, above, splits",
    [
        (("imgs/train/a", "imgs/train/b", "imgs/val/a"), "imgs", {"train": 4, "val": 2}),
        (("x/y/Train", "x/y/TEST"), "x/y", {"test": 2, "train": 2}),
        (
            ("test/train", "test/val"),
            "test",
            {"train": 2, "val": 2},
        ),  # the names of several folders count more than that of one
        (("x/train/a", "x/train/b"), "x", {"train": 4}),
        (("train/train",), "", {"train": 2}),
        (("x/train", "x/val", "x/extra1", "x/notes"), "x", {"extra1": 2, "train": 2, "val": 2}),
    ],
)
def test_single_folders_above_splits_are_skipped(folders, above, splits):
    found = arrange(files(*folders))
    assert {split: len(paths) for split, (_, paths) in found.splits.items()} == splits
    assert all(prefix.rpartition("/")[0] == above for prefix, _ in found.splits.values())
    assert bool(above) == bool(found.lines) and (not above or f"of {above}/" in found.lines[0])
    assert len(found.lines) <= 1 or "left out: 2 in notes" in found.lines[1]


def test_the_layout_of_0_1_0():
    """A run of that version keeps its images or is refused."""
    found = arrange_as_0_1_0([*files("bus", "train", "valid"), "train/x.JFIF", "train/y.JPEG"])
    assert found == {"train": ("train", ["0.jpg", "1.jpg", "y.JPEG"])}
    assert arrange_as_0_1_0(files("Train", "val")) == {"train": ("", files("Train", "val"))}


def test_labels_and_paths_below_a_skipped_folder(root, capsys):
    write_images(root, "set/Train/b/1.png", "set/Train/a/2.png", "set/Val/a/3.png", "set/Val/b/4.png")
    source = FolderSource(root)
    assert source.splits == {"train": 2, "val": 2} and source.class_names == ["a", "b"]
    assert source.arrays("train").labels.tolist() == [0, 1]
    assert source.arrays("train").images[:, 0, 0, 0].tolist() == [1, 0]
    assert source.path("val", 0) == root / "set" / "Val" / "a" / "3.png" and source.file("val", 1) == "set/Val/b/4.png"
    assert prepare.main([f"--folder={root}"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "images: the splits are train (2 images of set/Train), val (2 images of set/Val)"
    assert [line.split(",")[0] for line in lines] == ["train: 2 images", "val: 2 images"]
