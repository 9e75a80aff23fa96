"""The list of the images below a folder: cached, made again after any change, and without other files."""

import os
import time

import pytest

from bt_jax.data.sources import folder_listing
from bt_jax.data.sources.image_folder import FolderSource
from bt_jax.data.sources.open_source import open_source
from bt_jax.messages import UserError
from tests.support.drawn_images import write_images


def settle(root):
    """Makes all folders look unchanged for a minute."""
    for path in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        os.utime(path, ns=(time.time_ns() - 60_000_000_000,) * 2)


def keep(root, monkeypatch):
    """Opens the folder so that its listing is cached, although a change time cannot be set back."""
    settle(root)
    with monkeypatch.context() as patch:
        patch.setattr(folder_listing, "SETTLED", -(10**18))
        return FolderSource(root)


def other_tick(root, file):
    """Waits until a new change of the folder would get a new change time."""
    while True:
        file.touch()
        if file.stat().st_ctime_ns > root.stat().st_ctime_ns:
            return


def test_a_folder_is_listed_once(root, cache, monkeypatch):
    write_images(root, *(f"{i % 3}/{i}.png" for i in range(30)), "3/ü\udcff.png")
    (root / "1" / "notes.txt").write_text("no image")
    first = keep(root, monkeypatch)
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(folder_listing, "_scan", lambda *_: pytest.fail("listed again"))
        again = FolderSource(root)
    assert again.splits == {"train": 31} and list(again.encoded("train")) == list(first.encoded("train"))
    assert again.notes == first.notes and "1 .txt" in again.notes[-1]
    write_images(root, "1/new.png")
    assert FolderSource(root).splits == {"train": 32}
    (root / "1" / "new.png").unlink()
    assert FolderSource(root).splits == {"train": 31}
    os.rename(root / "2", root / "7")
    assert FolderSource(root).class_names == ["0", "1", "3", "7"]


@pytest.mark.parametrize("change", ["added", "removed", "another folder", "another version"])
def test_a_change_whose_time_was_set_back_is_noticed(root, tmp_path, monkeypatch, change):
    """Archives, container images and rsync set modification times back."""
    write_images(root, "a/1.png", "a/2.png", "b/3.png")
    assert keep(root, monkeypatch).splits == {"train": 3}
    folders = {path: path.stat().st_mtime_ns for path in (root, root / "a", root / "b")}
    other_tick(root / "a", tmp_path / "clock")
    if change == "added":
        write_images(root, "a/4.png")
    elif change == "removed":
        (root / "a" / "2.png").unlink()
    elif change == "another folder":
        (root / "a").rename(tmp_path / "aside")
        write_images(root, "a/5.png")
    else:
        root.rename(tmp_path / "aside")
        write_images(root, "a/1.png", "b/6.png")
    for path, time_ns in folders.items():
        os.utime(path, ns=(time_ns, time_ns))
    assert FolderSource(root).splits == {"train": {"added": 4}.get(change, 2)}


@pytest.mark.parametrize("mark", range(5))
def test_all_signs_of_a_change_are_compared(root, monkeypatch, mark):
    write_images(root, "a/1.png", "b/2.png")
    found = (root / "a").stat()
    wanted = found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_nlink, found.st_size
    assert folder_listing._marks(root, ["a", "gone"]).tolist() == [list(wanted), [-1] * 5]
    keep(root, monkeypatch)
    marks = folder_listing._marks

    def other(*arguments):
        found = marks(*arguments)
        found[-1, mark] += 1
        return found

    monkeypatch.setattr(folder_listing, "_marks", other)
    monkeypatch.setattr(folder_listing, "_scan", lambda *_: (["other.png"], [], {}))
    assert FolderSource(root).splits == {"train": 1}


@pytest.mark.parametrize("damage", [b"", b"PK nonsense", None])
def test_a_damaged_list_is_replaced(root, cache, damage, monkeypatch):
    write_images(root, "a.png", "b.png")
    keep(root, monkeypatch)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-40] if damage is None else damage)
    assert FolderSource(root).splits == {"train": 2}


@pytest.mark.parametrize("name, value", [("CACHE_FORMAT", 9), ("_known_suffixes", lambda: ".png .heic")])
def test_a_list_of_another_version_is_replaced(root, monkeypatch, name, value):
    """Also a list made when Pillow decoded fewer formats."""
    write_images(root, "a.png", "b.png")
    keep(root, monkeypatch)
    monkeypatch.setattr(folder_listing, name, value)
    monkeypatch.setattr(folder_listing, "_scan", lambda *_: (["other.png"], [], {}))
    assert FolderSource(root).splits == {"train": 1}


def test_a_file_added_during_listing_is_found_the_next_time(root, monkeypatch):
    write_images(root, "a/1.png", "b/2.png")
    settle(root)
    scan = folder_listing._scan

    def slow(base, name):
        found = scan(base, name)
        if name == "a":
            write_images(root, "a/late.png")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(folder_listing, "_scan", slow)
        patch.setattr(folder_listing, "SETTLED", -(10**18))
        assert FolderSource(root).splits == {"train": 2}
    assert FolderSource(root).splits == {"train": 3}


def test_a_folder_that_is_being_written_is_not_cached(root, cache):
    """The change time counts, which cannot be set back."""
    write_images(root, "a/1.png")
    for _ in range(2):
        FolderSource(root)
        assert not cache.exists() or not list(cache.iterdir())
        settle(root)


def test_an_unwritable_cache_is_ignored(root, tmp_path):
    write_images(root, "a.png")
    (tmp_path / "file").write_text("")
    assert FolderSource(root, cache=tmp_path / "file" / "below").splits == {"train": 1}


def test_a_folder_that_cannot_be_listed(root, monkeypatch, capsys):
    """It is left out and named. The next start tries it again, although no folder has changed."""
    write_images(root, "a/1.png", "b/2.png", "c/3.png")
    scan, locked = os.scandir, {"b"}

    def refused(path):
        if os.path.basename(path) in locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert keep(root, monkeypatch).splits == {"train": 2}
    open_source(None, folder=root)
    said = capsys.readouterr().err
    assert f"WARNING: images: Cannot list {root / 'b'}: Permission denied; its images are left out" in said
    locked.clear()
    assert FolderSource(root).splits == {"train": 3}
    locked.add(root.name)
    write_images(root, "d/4.png")
    with pytest.raises(UserError, match="Cannot list .*/images: Permission denied"):
        FolderSource(root)


def test_dangling_links(root, tmp_path):
    """Such links are unreadable images; the other images of their folder are listed."""
    write_images(root, "a/1.png", "b/2.png")
    (root / "a" / "self.png").symlink_to(root / "a" / "self.png")
    (root / "a" / "gone.png").symlink_to(tmp_path / "gone.png")
    source = FolderSource(root)
    assert source.splits == {"train": 4}
    assert [isinstance(data, UserError) for data, _ in source.encoded("train")] == [False, True, True, False]


def test_left_out_files_are_counted(root):
    write_images(root, "a/1.png", "a/2.HEIC", "a/3.heic", "b/4.dng", "b/.5.png", "b/6.0001", "b/7", "a/8.jpg")
    (root / "a" / "labels.txt").write_text("")
    (root / "c" / ".thumbnails").mkdir(parents=True)
    (note,) = [note for note in FolderSource(root).notes if "left out" in note]
    assert note == (
        "WARNING: images: left out: 3 images that the installed Pillow cannot decode (2 .heic, 1 .dng, pip install"
        " pillow-heif), 3 files of other kinds (1 .txt, 1 with other suffixes, 1 without a suffix), 2 hidden images or"
        " folders"
    )
    (root / "d").mkdir()
    write_images(root / "d", "1.heic", "2.heic")
    with pytest.raises(UserError, match=r"no image below .*; left out: 2 images .* \(2 .heic, pip install pillow-heif"):
        FolderSource(root / "d")


def test_the_order_is_the_same_in_every_locale(monkeypatch):
    """The order of UTF-8 characters; bytes that are not UTF-8 come after most of them."""
    names = ["z", "é", "\udc80", "日", "\udcff", "a"]
    utf8 = folder_listing.in_order(names)
    assert utf8 == sorted(names)
    ascii_names = [os.fsencode(name).decode("ascii", "surrogateescape") for name in names]
    monkeypatch.setattr(folder_listing.sys, "getfilesystemencoding", lambda: "ascii")
    monkeypatch.setattr(folder_listing.os, "fsencode", lambda name: name.encode("ascii", "surrogateescape"))
    found = [name.encode("ascii", "surrogateescape") for name in folder_listing.in_order(ascii_names)]
    assert found == [name.encode("utf-8", "surrogateescape") for name in utf8] != sorted(found)
