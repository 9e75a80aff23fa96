"""Unreadable images: a few are allowed; an error about many names all of them and the share that allows them."""

import numpy as np
import pytest

from bt_jax import prepare
from bt_jax.data.sources.broken import UnreadableImages, allowed, enough
from bt_jax.data.sources.image_folder import FolderSource
from bt_jax.data.sources.npz import write_npz
from bt_jax.data.sources.open_source import open_source
from bt_jax.data.sources.selection import with_mixed
from bt_jax.messages import UserError
from tests.support.drawn_images import Listed, encode, write_images


def damaged(count: int, unreadable: int) -> Listed:
    """A source whose first images are unreadable."""
    whole = encode(np.full((4, 4, 3), 9, np.uint8))
    return Listed([(b"no image" if i < unreadable else whole, i % 2) for i in range(count)])


@pytest.mark.parametrize(
    "limit, count, found",
    [(0.01, 5000, 50), (0.01, 300, 10), (0.5, 12, 10), (0.01, 10, 9), (0.01, 3, 2), (0.29, 100, 29), (0, 100, 0)]
    + [(1, 8, 8), (0.999, 8, 7), (0.01, 1, 0)],
)
def test_the_number_of_allowed_images(limit, count, found):
    """The share but at least ten, and never all; 0 allows none, 1 allows all."""
    assert allowed(limit, count) == found


@pytest.mark.parametrize("count", [11, 12, 37, 100, 1281167])
def test_the_suggested_share_suffices(count):
    for unreadable in {11, count // 3, count // 2 + 1, count - 1} - {*range(11), count}:
        share = enough(unreadable, count)
        assert unreadable <= allowed(share, count) <= count - (share < 1)
        assert 0 <= share - unreadable / count < 0.01 and len(str(share)) < 10


def test_the_error_names_all_images_and_the_share_that_allows_them(tmp_path):
    """Also images after the one that exceeds the limit."""
    said = []
    with pytest.raises(UserError) as caught:
        damaged(40, 14).arrays("train", UnreadableImages(damaged(40, 14), limit=0.01, say=said.append))
    assert str(caught.value) == (
        "14 of the 40 images of listed, split 'train', cannot be read; they are listed above."
        " Restore them from a copy, or allow them with --config.data.broken_limit=0.35."
    )
    named = [line for line in said if line.startswith("unreadable: ")]
    assert [line.split(":")[1].split()[-1] for line in named] == [str(i) for i in range(14)]
    assert all("cannot identify image file" in line for line in named)
    assert (
        len(damaged(40, 14).arrays("train", UnreadableImages(damaged(40, 14), limit=0.35, say=said.append)).images)
        == 40
    )

    broken = UnreadableImages(damaged(40, 20), limit=0.01, say=said.append)
    broken.write_to(tmp_path / "broken.txt")
    with pytest.raises(UserError, match="15 of the 35 images .* listed in .*broken.txt"):
        damaged(40, 20).arrays("train[5:]", broken)
    assert len((tmp_path / "broken.txt").read_text().splitlines()) == 15


def test_an_image_of_two_splits_is_named_once(root, tmp_path, capsys):
    """On stderr and in the file; both splits count it."""
    write_images(root, "a/1.png", "a/2.png", "b/3.png")
    (root / "a" / "2.png").write_bytes(b"no image")
    source = with_mixed(FolderSource(root), ["train.mixed"])
    broken = UnreadableImages(source, limit=0.5)
    broken.write_to(tmp_path / "broken.txt")
    for split in ("train", "train.mixed"):
        assert sorted(source.arrays(split, broken).labels) == [-1, 0, 1]
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("a/2.png: the image cannot be read") == said.err.count("\n") == 1
    assert (tmp_path / "broken.txt").read_text().count("\n") == len(broken.lines) == 1


def test_ten_unreadable_images_are_allowed():
    found = damaged(12, 10).arrays("train", UnreadableImages(damaged(12, 10), limit=0.01, say=[].append))
    assert found.labels.tolist() == [-1] * 10 + [0, 1]
    with pytest.raises(UserError, match="12 of the 12 images .* listed above. Restore them from a copy.$"):
        damaged(12, 12).arrays("train", UnreadableImages(damaged(12, 12), limit=0.01, say=[].append))


@pytest.mark.parametrize("form", ["npz", "shards"])
def test_a_few_unreadable_images_are_written_unchanged(root, tmp_path, capsys, form):
    """Other images keep their ids and labels. The written images are unreadable too. Too many are an error."""
    pytest.importorskip("tensorflow_datasets")
    write_images(root, *(f"{'ab'[i // 15]}/{i:02}.png" for i in range(30)))
    for i in (3, 20):
        (root / f"{'ab'[i // 15]}/{i:02}.png").write_bytes(b"no image")
    (root / "b" / "25.png").unlink()
    (root / "b" / "25.png").symlink_to(tmp_path / "gone")
    option = f"--npz={tmp_path}/out.npz" if form == "npz" else f"--shards={tmp_path}/out"
    assert prepare.main([f"--folder={root}", option, "--broken_limit=0"]) == 2
    said = capsys.readouterr().err
    assert "3 of the 30 images" in said and "--broken_limit=0.1" in said and not list(tmp_path.glob("out*"))
    assert prepare.main([f"--folder={root}", option]) == 0
    said = capsys.readouterr().out
    assert said.count("unreadable: ") == 3 and "3 images cannot be read" in said
    stored = open_source(None, npz=tmp_path / "out.npz") if form == "npz" else open_source("out", data_dir=tmp_path)
    images, labels = stored.arrays("train", UnreadableImages(stored, limit=0.01, say=[].append))
    wanted, wanted_labels = FolderSource(root).arrays(
        "train", UnreadableImages(FolderSource(root), limit=0.01, say=[].append)
    )
    assert sorted(labels) == sorted(wanted_labels) and (labels == -1).sum() == 3
    if form == "npz":
        np.testing.assert_array_equal(images, wanted)
        np.testing.assert_array_equal(labels, wanted_labels)
    again = [f"--npz_in={tmp_path}/out.npz"] if form == "npz" else ["--data=out", f"--data_dir={tmp_path}"]
    assert prepare.main([*again, "--broken_limit=0.05"]) == 0  # a few are allowed for any share, as in training
    assert prepare.main([*again, "--broken_limit=0"]) == 2
    said = capsys.readouterr().out
    assert "30 images, all 8x8, 2 of 2 classes, 14 to 15 each, 3 unreadable" in said


def test_file_names_that_are_not_utf8(root, tmp_path, capsys):
    """Messages and files escape them, so that a terminal of any encoding can print them."""
    write_images(root, "caf\udce9/a.png", "caf\udce9/b.png", "cafe/gar\udce7on.png", "日本/1.png")
    (root / "cafe/gar\udce7on.png").write_bytes(b"no image")
    source, said = FolderSource(root), []
    assert source.class_names == ["cafe", "caf\\xe9", "日本"]
    broken = UnreadableImages(source, limit=0.5, say=said.append)
    broken.write_to(tmp_path / "broken.txt")
    source.arrays("train", broken)
    assert len(said) == 1 and f"WARNING: {root}/cafe/gar\\xe7on.png: the image cannot be read (" in said[0]
    assert (tmp_path / "broken.txt").read_text("utf-8").count("gar\\xe7on.png") == 1
    assert prepare.main([f"--folder={root}", "--broken_limit=0"]) == 2
    out, err = capsys.readouterr()
    assert "unreadable: " in out and "gar\\xe7on.png: cannot identify" in out and err.count("\n") == 1
    write_npz(source, tmp_path / "names.npz", ["train"])
    assert open_source(None, npz=tmp_path / "names.npz").class_names == source.class_names
