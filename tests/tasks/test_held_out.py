"""Held-out images: a share of a folder, a warning of images that are trained on too, and what is said without any."""

import re

import numpy as np
import pytest

from bt_jax.config import keys
from bt_jax.configs import pretrain_folder
from bt_jax.data.sources.selection import concatenated, with_mixed
from bt_jax.messages import UserError
from bt_jax.tasks import held_out
from tests.support.drawn_images import Listed
from tests.support.runs import changed

FLAGS = "--config.data.train_split='train.mixed[:80%]' --config.data.val_split='train.mixed[80%:]'"


def of_classes(*counts):
    """A data set with this many images of each class, class by class."""
    return Listed([(b"", label) for label, count in enumerate(counts) for _ in range(count)])


@pytest.mark.parametrize("smoke", ["", ",smoke"])
def test_a_share_of_a_folder_is_held_out(smoke):
    """A part of every class, and no image of it is trained on, also in the small form."""
    config = pretrain_folder.get_config(f"val=20%{smoke}")
    splits = config.data.train_split, config.data.val_split
    source = with_mixed(of_classes(50, 30, 20), splits)
    shared, count = held_out.overlap(source, *splits)
    assert (shared, count) == (0, 20)
    span = source.span(splits[0])
    assert span.stop - span.start == (64 if smoke else 80)
    span = source.span(splits[1])
    assert np.bincount(source.labels("train.mixed")[span.start : span.stop]).tolist() == [10, 6, 4]


@pytest.mark.parametrize("val", ["20", "0%", "100%", "120%"])
def test_a_share_that_is_none(val):
    with pytest.raises(UserError, match=f"val={val} is no share of the images. Write e.g. val=20%"):
        pretrain_folder.get_config(f"val={val}")


def test_a_slice_of_the_user_is_held_out_in_the_small_form_too():
    config = pretrain_folder.get_config("val=train.mixed[80%:],smoke")
    span = with_mixed(of_classes(99, 1), [config.data.val_split]).span(config.data.val_split)
    assert span == ("train.mixed", 80, 100)
    assert pretrain_folder.get_config("val=test,smoke").data.val_split == "test.mixed[:32]"


@pytest.mark.parametrize(
    "train, val, shared",
    [
        ("train[:6]", "train[6:]", 0),
        ("train[:7]", "train[6:]", 1),
        ("train", "train.mixed[80%:]", 2),
        ("train[:5]", "train.mixed", 5),
        ("train[:2]+train[8:]", "train[1:9]", 2),
    ],
)
def test_images_of_both_splits_are_counted(train, val, shared):
    """In the order of the images or mixed."""
    source = with_mixed(of_classes(5, 5), [*train.split("+"), val])
    assert held_out.overlap(source, train, val)[0] == shared
    joined = concatenated(source, val)  # whose images are those of a split that is a selection itself
    assert held_out.overlap(joined, train, "joined")[0] == shared


def test_held_out_images_that_are_trained_on_get_a_warning(capsys):
    config = keys.read(pretrain_folder.get_config("val=train.mixed[80%:]"))
    held_out.say(config, with_mixed(of_classes(5, 5), ["train.mixed"]))
    assert capsys.readouterr().err == (
        "WARNING: 2 of the 2 held-out images (train.mixed[80%:]) are also training images (train), so the accuracies"
        " say little about new images. Hold images out with val=20%, as in --config=pretrain_folder:val=20%.\n"
    )
    config = keys.read(pretrain_folder.get_config("val=20%"))
    held_out.say(config, with_mixed(of_classes(5, 5), ["train.mixed"]))
    assert capsys.readouterr().err == ""


def test_no_held_out_split_is_said_if_there_are_labels(capsys):
    config = keys.read(pretrain_folder.get_config())
    held_out.say(config, of_classes(5, 5))
    said = "There is no held-out split, so kNN and probe are left out. Hold images out with val=20%, as in"
    assert capsys.readouterr().out.startswith(said)
    held_out.say(config, Listed([(b"", None)] * 10))
    held_out.say(keys.read(changed(keys.evaluate(), **{"data.val_split": ""})), of_classes(5, 5))
    off = {"data.val_split": "", "evals.every_epochs": 0.0, "evals.final": False}
    held_out.say(keys.read(changed(keys.pretrain(), **off)), of_classes(5, 5))
    assert capsys.readouterr().err == ""


def test_a_held_out_split_that_is_not_there():
    """The error does not lead to the training images."""
    said = f"listed has no split 'test': its only split is 'train'. Hold images out with {FLAGS}."
    with pytest.raises(UserError, match=re.escape(said)):
        held_out.check_split(keys.read(keys.pretrain()), with_mixed(of_classes(5, 5), ["train.mixed[:80%]"]))
    source = of_classes(5, 5)
    source.splits |= {"val": 3}
    said = "listed has no split 'test'. Set --config.data.val_split to a split that it has: train, val."
    with pytest.raises(UserError, match=re.escape(said)):
        held_out.check_split(keys.read(keys.pretrain()), source)
    config = changed(keys.pretrain(), **{"data.train_split": "train+learn[:3]", "data.val_split": "val[:2]"})
    said = "listed has no split 'learn'. Set --config.data.train_split to a split that it has: train, val."
    with pytest.raises(UserError, match=re.escape(said)):
        held_out.check_split(keys.read(config), source)
