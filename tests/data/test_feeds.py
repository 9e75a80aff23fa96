"""The reader of streamed images: which one it is, what a run records, and what a second start may change."""

import importlib.util
import re

import pytest

from bt_jax.config import keys
from bt_jax.configs import pretrain_folder
from bt_jax.data import feeds, pillow_stream
from bt_jax.data.sources.npz import write_npz
from bt_jax.data.sources.open_source import open_source
from bt_jax.messages import UserError
from bt_jax.run_folder import same_run
from bt_jax.tasks import open_run
from tests.support.drawn_images import write_images
from tests.support.runs import changed
from tests.support.wiring import Squares


@pytest.mark.parametrize(
    "values, installed, reader",
    [
        ({"on_device": True, "reader": "pillow"}, True, ""),
        ({"name": "folder", "folder": "photos"}, True, "tensorflow"),
        ({"name": "folder", "folder": "photos"}, False, "pillow"),
        ({"npz": "photos.npz"}, False, "pillow"),
        ({"name": "imagenet2012"}, False, "tensorflow"),
        ({"folder": "photos", "reader": "pillow"}, True, "pillow"),
    ],
)
def test_the_reader_of_a_data_set(monkeypatch, values, installed, reader):
    """TFDS data sets are described by TensorFlow; without it they fail with a line that says so."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed)
    values = {f"data.{name}": value for name, value in ({"on_device": False, "name": ""} | values).items()}
    assert feeds.reader_of(keys.read(changed(keys.pretrain(), **values)).data) == reader


def test_streamed_images_are_read_by_it(monkeypatch):
    asked = []

    def batches(source, split, **options):
        asked.append((split, options["canvas"]))
        return iter([{"mask": [True]}])

    monkeypatch.setattr(pillow_stream, "eval_batches", batches)
    values = {"data.on_device": False, "data.reader": "pillow", "data.train_split": "learn", "data.canvas": 8}
    feed = feeds.make_feed(keys.read(changed(keys.pretrain(), **values)), Squares(), open_mesh(), None, 3)
    next(feed.passes("look", 0)())
    assert asked == [("look", 8)]


def open_mesh():
    return open_run.open_machine(keys.read(changed(keys.pretrain(), batch_size=8)))


def test_a_run_keeps_its_reader():
    """A run of 0.1.0 streamed by TensorFlow. Another reader is another run unless it is asked for."""
    old = {"data": {"on_device": False}}
    assert same_run.differences(old, {"data": {"on_device": False, "reader": "tensorflow"}}) == []
    new = {"data": {"on_device": False, "reader": "pillow"}}
    assert same_run.differences(old, new) == ["data.reader: tensorflow -> pillow"]
    assert same_run.differences(old, new, free=("data.reader",)) == []
    assert same_run.differences({"data": {"on_device": True}}, {"data": {"on_device": True, "reader": ""}}) == []


def test_a_reader_that_is_none():
    with pytest.raises(UserError, match="config.data.reader='grain' is unknown. Choose from"):
        keys.read(changed(keys.pretrain(), **{"data.reader": "grain"}))


def test_the_folder_recipe_takes_the_cache_file_of_a_folder(tmp_path, monkeypatch):
    """Whatever the folder was called. A recipe for one data set refuses the file and names the key."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_images(tmp_path / "photos", "a/0.png", "b/0.png")
    source = open_source(None, folder=tmp_path / "photos")
    write_npz(source, tmp_path / "own.npz", ["train"])
    config = changed(pretrain_folder.get_config("val=20%"), **{"data.npz": str(tmp_path / "own.npz")})
    found, _ = feeds.open_data(keys.read(config).data)
    assert list(found.encoded("train")) == list(source.encoded("train")) and found.kind == "npz"
    config.data.name = "cifar10"
    said = "own.npz holds 'photos', not 'cifar10'. Name the file of 'cifar10', or set --config.data.name=photos."
    with pytest.raises(UserError, match=re.escape(said)):
        feeds.open_data(keys.read(config).data)


def test_a_folder_that_nobody_names():
    """Not a TFDS data set of that name."""
    with pytest.raises(UserError, match="No folder of images is named. Set --config.data.folder=IMAGES."):
        feeds.open_data(keys.read(changed(keys.pretrain(), **{"data.name": "folder"})).data)
