"""`data.labels=False`: pretraining treats every data set as it treats images without labels."""

import json

import numpy as np
import pytest

from bt_jax import prepare
from bt_jax.config import keys
from bt_jax.data import feeds
from bt_jax.data.pipeline import eval_batches, train_batches
from bt_jax.data.sources import class_check, identity
from bt_jax.data.sources.npz import write_npz
from bt_jax.data.sources.open_source import open_source
from bt_jax.data.sources.selection import concatenated
from bt_jax.data.tfrecord_shards import write_shards
from bt_jax.tasks import pretrain
from tests.support.drawn_images import write_images
from tests.support.runs import changed

HINT = "images: taking 3 top folders as labels: 2023, 2024, 2025; to pretrain without labels"


@pytest.fixture
def years(root):
    """A folder of twelve images, in three sub-folders that are no classes."""
    write_images(root, *(f"{year}/{i}.png" for year in (2023, 2024, 2025) for i in range(4)))
    return root


@pytest.fixture(params=["folder", "npz", "tfds", "joined", "patterns"])
def labelled(request, years, tmp_path):
    """A data set of each kind, all but the last with the same images, and a split of it."""
    source = open_source(None, folder=years)
    if request.param == "patterns":
        return open_source("patterns"), "test[:12]"
    if request.param == "npz":
        write_npz(source, tmp_path / "years.npz", ["train"])
        return open_source(None, npz=tmp_path / "years.npz"), "train"
    if request.param == "tfds":
        pytest.importorskip("tensorflow")
        write_shards(source, tmp_path, "years", ["train"])
        return open_source("years", data_dir=tmp_path), "train"
    return (concatenated(source, "train[:6]+train[6:]"), "joined") if request.param == "joined" else (source, "train")


def test_every_kind_of_data_set_gives_the_same_images_without_labels(labelled):
    source, split = labelled
    base, before = source.span(split).base, list(source.encoded(split))
    plain = source.without_labels()
    assert (plain.num_classes, list(plain.class_names), plain.labelled(base)) == (0, [], False)
    assert list(plain.encoded(split)) == [(image, None) for image, _ in before]
    arrays, whole = plain.arrays(split), source.arrays(split)
    assert arrays.labels is None and np.array_equal(arrays.images, whole.images)
    assert plain.targets(base) is None
    assert source.labelled(base) and list(source.encoded(split)) == before and whole.labels is not None


def test_streams_have_no_labels_either(labelled):
    """Also where TensorFlow parses the records by itself."""
    pytest.importorskip("tensorflow")
    source, split = labelled
    options = {"canvas": 8, "channels": 3}
    plain, sequential = source.without_labels(), {"shuffle_buffer": 4} if source.kind == "" else {}
    made = train_batches(plain, split, batch_size=4, seed=0, **sequential, **options)
    assert (next(iter(made))["label"] == -1).all()
    assert (next(iter(eval_batches(plain, split, batch_size=4, **options)))["label"] == -1).all()


def settings(years, **values):
    """A tiny run on the folder; it trains on some images of every year."""
    values = {"data.folder": str(years), "data.train_split": "train.mixed[:75%]", "batch_size": 8} | values
    values |= {"data.val_split": "train.mixed[75%:]", "evals.spectrum_images": 4, "model.width": 1 / 32}
    return keys.read(changed(keys.pretrain(), **values | {"model.projector": (8, 8), "views.size": 8}))


@pytest.mark.parametrize("labels", [True, False])
def test_the_key_of_pretraining(years, tmp_path, capsys, labels):
    """Without labels: no probe, no kNN, no class, and no line about folders as labels."""
    run = pretrain._prepare(settings(years, **{"data.labels": labels}), str(tmp_path / "run"), 0.0)
    assert (HINT in capsys.readouterr().out) == labels == (run.frozen is not None)
    assert bool(run.class_names) == labels
    kinds = {type(each).__name__ for each in run.training.evaluators}
    assert kinds == {"Spectrum", "CrossCorrelation"} | ({"KNN", "OnlineProbe"} if labels else set())
    assert json.loads((run.training.folder / "config.json").read_text())["data"]["labels"] == labels


def test_only_pretraining_names_its_key(years, capsys):
    """`evaluate`, `finetune` and the tools have no such key."""
    feeds.open_data(settings(years).data)
    line, hint = HINT.split(";")
    assert f"{line};{hint}: --config.data.labels=False\n" in capsys.readouterr().out
    for data in (keys.evaluate(), keys.finetune()):
        feeds.open_data(keys.read(changed(data, **{"data.folder": str(years), "data.val_split": ""})).data)
        assert f"{line}\n" in capsys.readouterr().out
    assert prepare.main([f"--folder={years}"]) == 0
    assert f"{line}\n" in capsys.readouterr().out


def test_a_mixed_split_still_has_a_part_of_every_folder(years):
    options = settings(years).data
    source, _ = feeds.open_data(options, labels=False)
    files = [source.file("train.mixed", i) for i in range(9)]
    assert sorted({file.partition("/")[0] for file in files}) == ["2023", "2024", "2025"]
    assert identity.describe(source, [options.train_split])["classes"] == 0
    assert class_check.compare(source, "train[:4]", "train[4:]", read=True) is None
