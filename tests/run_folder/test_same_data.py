"""The images of a run: they may move, and any other change at the next start is an error of one line."""

import json
import shutil

import numpy as np
import pytest

from bt_jax import storage
from bt_jax.config import arguments, keys
from bt_jax.data.sources import identity
from bt_jax.data.sources.image_folder import FolderSource
from bt_jax.data.sources.npz import NpzSource, write_npz
from bt_jax.data.sources.open_source import open_source
from bt_jax.data.sources.selection import concatenated, with_mixed
from bt_jax.messages import UserError
from bt_jax.processes import coordination, join
from bt_jax.run_folder import opening, same_data, same_run
from tests.support.drawn_images import Listed, encode, write_images
from tests.support.runs import changed
from tests.support.tfds_files import write_dataset

SPLITS = ("train[:90%]", "val")


def images(source, splits=SPLITS) -> same_data.Images:
    return same_data.Images(identity.describe(source, splits), lambda: identity.describe(source.as_in_0_1_0(), splits))


def start(run, source, **values):
    """Opens the folder of a run on the images of a source."""
    return opening.open_folder(str(run), arguments.to_dict(changed(keys.pretrain(), **values)), images(source))


def refused(run, source, said):
    before = (run / "data.json").read_bytes() if (run / "data.json").exists() else None
    with pytest.raises(UserError) as caught:
        start(run, source)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert before is None or (run / "data.json").read_bytes() == before


@pytest.fixture
def pets(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "pets"
    classes = [f"{split}/{label}" for split in ("train", "val") for label in "ab"]
    write_images(folder, *(f"{each}/{i}.png" for each in classes for i in range(5)))
    return folder


def test_the_images_of_a_run_are_recorded(pets, tmp_path):
    start(tmp_path / "run", FolderSource(pets))
    found = json.loads((tmp_path / "run" / "data.json").read_text())
    assert found["classes"] == ["a", "b"] and found["splits"].keys() == {"train", "val"}
    assert all(split["images"] == 10 and list(split["digests"]) == ["folder"] for split in found["splits"].values())
    before = (tmp_path / "run" / "data.json").read_bytes()
    start(tmp_path / "run", FolderSource(pets))
    assert (tmp_path / "run" / "data.json").read_bytes() == before


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda pets: write_images(pets, "train/a/new.png"), "(train: 10 images -> 11)"),
        (lambda pets: (pets / "val/b/0.png").unlink(), "(val: 10 images -> 9)"),
        (
            lambda pets: (pets / "train/a/0.png").rename(pets / "train/a/0x.png"),
            "(train: 10 images as before, with other file names)",
        ),
        (
            lambda pets: write_images(pets, "train/c/1.png", "val/c/2.png"),
            "(train: 10 images -> 11; val: 10 images -> 11; classes: 2 -> 3, new: c)",
        ),
        (lambda pets: shutil.rmtree(pets / "train/a"), "(train: 10 images -> 5)"),
        (lambda pets: [shutil.rmtree(pets / split / "a") for split in ("train", "val")], "classes: 2 -> 0"),
        (
            lambda pets: [(pets / split / "a").rename(pets / split / "c") for split in ("train", "val")],
            "with other file names; classes: 2 -> 2, new: c, missing: a)",
        ),
    ],
)
def test_other_images_are_an_error(pets, tmp_path, change, said):
    start(tmp_path / "run", FolderSource(pets))
    change(pets)
    refused(tmp_path / "run", FolderSource(pets), f"{tmp_path / 'run'} holds a run on other images")
    refused(tmp_path / "run", FolderSource(pets), said)


def test_moved_images_are_accepted(pets, tmp_path):
    """Also below other folders, and with other names of the split folders. An unused split may change."""
    start(tmp_path / "run", FolderSource(pets))
    before = (tmp_path / "run" / "data.json").read_bytes()
    pets.rename(tmp_path / "elsewhere")
    start(tmp_path / "run", FolderSource(f"{tmp_path}/elsewhere/"))
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "elsewhere" / "train").rename(tmp_path / "elsewhere" / "Train")
    (tmp_path / "elsewhere").rename(tmp_path / "a" / "b" / "pets")
    write_images(tmp_path / "a" / "b" / "pets", "test/a/1.png")
    start(tmp_path / "run", FolderSource(tmp_path / "a"))
    assert (tmp_path / "run" / "data.json").read_bytes() == before
    write_images(tmp_path / "a" / "b" / "pets", "test/d/1.png")
    refused(tmp_path / "run", FolderSource(tmp_path / "a"), "(classes: 2 -> 3, new: d)")


def test_a_path_is_recorded_as_absolute(pets, tmp_path, monkeypatch):
    """So `evaluate` finds the images from another folder. The path may change at the next start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder, npz in (("pets", "~/x.npz"), ("~/pets/", ""), ("gone/../pets", "")):
        start("run", FolderSource(pets), **{"data.folder": folder, "data.npz": npz, "data.dir": "gs://bucket/data"})
        kept = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
        assert kept["folder"] in (str(pets), f"{tmp_path}/gone/../pets") and kept["dir"] == "gs://bucket/data"
        assert kept["npz"] == (f"{tmp_path}/x.npz" if npz else "")
    with pytest.raises(UserError, match="another config .data.folder: .* -> "):
        start("run", FolderSource(pets))
    old, new = ({"data": {"folder": folder}} for folder in ("/a", ""))
    assert same_run.differences(old, new) and same_run.differences(new, old)
    assert same_run.differences(old, {"data": {"folder": "/b"}}) == []


def test_content_of_a_cache_file(tmp_path):
    """A rewritten file is equal; one changed pixel or label makes it different."""
    records = [(encode(np.full((4, 4, 3), i, np.uint8)), i % 2) for i in range(6)]

    def cache(name, records):
        write_npz(Listed(records), tmp_path / name, ["train"])
        return NpzSource(tmp_path / name)

    start(tmp_path / "run", cache("first.npz", records))
    start(tmp_path / "run", cache("moved.npz", records))
    with np.load(tmp_path / "moved.npz") as stored:
        np.savez_compressed(tmp_path / "packed.npz", **stored)
    start(tmp_path / "run", NpzSource(tmp_path / "packed.npz"))
    other_image = [(encode(np.full((4, 4, 3), 99, np.uint8)), 0), *records[1:]]
    refused(tmp_path / "run", cache("other.npz", other_image), "(train: 6 images as before, with other images)")
    other_label = [(records[0][0], 1), *records[1:]]
    refused(tmp_path / "run", cache("other.npz", other_label), "(train: 6 images as before, with other images)")
    refused(tmp_path / "run", cache("other.npz", records[1:]), "(train: 6 images -> 5)")


def test_version_of_a_tfds_data_set(tmp_path):
    """A run may resume with a cache file. Counts and classes are compared, and its digest is recorded."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["a", "b"])}
    )
    images = [encode(np.full((4, 4, 3), i, np.uint8)) for i in range(6)]
    examples = [features.encode_example({"image": image, "label": 1}) for image in images]
    records = [features.serialize_example(example) for example in examples]
    write_dataset(tmp_path, "mine", "train", features, records, files=2)
    source = open_source("mine", data_dir=tmp_path)
    start(tmp_path / "run", source)
    (tmp_path / "mine").rename(tmp_path / "aside")
    write_dataset(tmp_path / "new", "mine", "train", features, records, files=2)
    start(tmp_path / "run", open_source("mine", data_dir=tmp_path / "new"))
    write_dataset(tmp_path / "other", "mine", "train", features, records, files=3)
    other = open_source("mine", data_dir=tmp_path / "other")
    refused(tmp_path / "run", other, "(train: 6 images as before, with other version: mine:1.0.0-")
    source = open_source("mine", data_dir=tmp_path / "new")
    write_npz(source, tmp_path / "mine.npz", ["train"])
    start(tmp_path / "run", NpzSource(tmp_path / "mine.npz"))
    kept = json.loads((tmp_path / "run" / "data.json").read_text())
    assert kept["splits"]["train"]["digests"].keys() == {"tfds", "npz"}
    write_npz(Listed([(b"x", 0)] * 6, class_names=["a", "b"]), tmp_path / "x.npz", ["train"])
    refused(tmp_path / "run", NpzSource(tmp_path / "x.npz"), "with other images")
    start(tmp_path / "run", source)


def test_derived_splits_are_recorded_by_their_originals(pets):
    source = FolderSource(pets)
    whole = identity.describe(source, ["train", "val"])
    assert (
        identity.describe(source, ["train[:10%]", "val[1:]"]) == whole == identity.describe(source, ["train+val", ""])
    )
    mixed = with_mixed(source, ["train.mixed[:3]"])
    assert identity.describe(mixed, ["train.mixed[:3]", "val"]) == whole
    assert identity.describe(concatenated(source, "train+val"), ["train+val"]) == whole
    assert identity.describe(mixed.as_in_0_1_0(), ["train.mixed", "val"]) == whole


def test_a_run_of_0_1_0_gets_a_record_if_its_images_are_the_same(pets, tmp_path):
    """Later versions find other images or splits in a folder."""
    for name in ("same", "split", "suffix"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(arguments.to_dict(keys.pretrain())))
    start(tmp_path / "same", FolderSource(pets))
    assert (tmp_path / "same" / "data.json").exists()
    write_images(pets, "train/a/1.jfif")
    refused(tmp_path / "suffix", FolderSource(pets), "is from bt_jax 0.1.0, which read other images")
    refused(tmp_path / "suffix", FolderSource(pets), "(train: 10 images -> 11). Finish the run with that version")
    (pets / "train/a/1.jfif").unlink()
    (pets / "val").rename(pets / "bus")
    said = "(train: 10 images -> 20; classes: 2 -> 2, new: bus, train, missing: a, b)"
    refused(tmp_path / "split", FolderSource(pets), said)
    start(tmp_path / "new", FolderSource(pets))


def test_a_damaged_record_is_named(pets, tmp_path):
    start(tmp_path / "run", FolderSource(pets))
    for text in (
        "{",
        "[]",
        '{"classes": []}',
        '{"classes": 0, "splits": {"train": 3}}',
        '{"classes": 0, "splits": []}',
    ):
        (tmp_path / "run" / "data.json").write_text(text)
        refused(tmp_path / "run", FolderSource(pets), "data.json is damaged. Delete it")


def test_a_killed_start_does_not_look_like_a_run_of_0_1_0(pets, tmp_path, monkeypatch):
    """data.json is written before config.json."""
    (pets / "train").rename(pets / "Train")

    def killed(path, content):
        if path.name == "config.json":
            raise KeyboardInterrupt
        path.write_text(json.dumps(content))

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "run", FolderSource(pets))
    start(tmp_path / "run", FolderSource(pets))


def test_processes_compare_their_images(pets, monkeypatch):
    """They compare contents, not paths."""
    compared = []
    monkeypatch.setattr(coordination, "is_multi_process", lambda: True)
    monkeypatch.setattr(join, "check_identical", compared.append)
    config = keys.pretrain()
    opening.check_same_run(config, **images(FolderSource(pets)).facts())
    pets = pets.rename(pets.with_name("other"))
    opening.check_same_run(changed(config, **{"data.folder": str(pets)}), **images(FolderSource(pets)).facts())
    (pets / "train/a/0.png").rename(pets / "train/a/x.png")
    opening.check_same_run(config, **images(FolderSource(pets)).facts())
    assert compared[0] == compared[1] and compared[0]["images of train"] == 10
    assert {key for key in compared[0] if compared[0][key] != compared[2][key]} == {"file names of train"}
