"""The part of opening that all tasks share."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from bt_jax.config import arguments, keys
from bt_jax.data import feeds
from bt_jax.messages import UserError
from bt_jax.tasks import open_run
from bt_jax.train import build
from tests.support.runs import changed, tiny
from tests.support.wiring import Squares


def test_another_training_split_does_not_change_the_config(monkeypatch, tmp_path):
    """The config records the requested split, which a resume compares."""
    monkeypatch.setattr(feeds, "open_source", lambda *_, **__: Squares())
    config = changed(keys.pretrain(), **{"data.train_split": "learn[8:40]", "data.val_split": "learn", "batch_size": 8})
    before, config = arguments.to_dict(config), keys.read(config)
    mesh = open_run.open_machine(config)
    data = open_run.open_data(config, str(tmp_path / "run"), mesh, 3, lambda source: (source, "look"))
    assert data.train_split == "look" and data.feed.images == 26
    assert open_run.open_schedule(config, data).steps_per_epoch == 26 // 8
    recipe = build.build_recipe(config.views)
    folder = open_run.open_folder(config, str(tmp_path / "run"), data, recipe, "squares")
    stored = json.loads((folder / "config.json").read_text())
    assert (stored["data"].pop("reader"), stored["data"].pop("exif_orientation")) == ("", "ignore")
    assert before["data"].pop("reader") == before["data"].pop("exif_orientation") == "auto"
    assert [tuple(stored["views"].pop(name)) for name in ("mean", "std")] == [recipe.mean, recipe.std]
    assert before["views"].pop("mean") is before["views"].pop("std") is None
    assert stored == before


def test_what_is_odd_is_said_before_anything_is_read(monkeypatch, capsys):
    """But after the number of images is known, whose error names another batch."""
    monkeypatch.setattr(open_run.opening, "check_same_run", lambda *_, **facts: None)
    monkeypatch.setattr(open_run, "_orientation", lambda source: "auto")
    images = SimpleNamespace(facts=dict)
    settings = keys.read(changed(tiny(), **{"optim.warmup_epochs": 9.0, "tuned_batch_size": 512}))
    with pytest.raises(UserError, match="do not fill one batch"):
        open_run.open_schedule(settings, SimpleNamespace(feed=SimpleNamespace(images=1), images=images, source=None))
    assert not capsys.readouterr().err
    open_run.open_schedule(settings, SimpleNamespace(feed=SimpleNamespace(images=64), images=images, source=None))
    said = capsys.readouterr().err
    assert "optim.warmup_epochs=9, but the run has 2 epochs" in said and "tuned for a batch of 512" in said


@pytest.mark.parametrize(
    "values, said",
    [
        ({"batch_size": 0}, "must be positive"),
        ({"devices": 3}, "config.devices=3, but JAX has 8 devices"),
        ({"batch_size": 12}, "is not divisible by 8 devices"),
    ],
)
def test_impossible_settings_are_an_error(values, said):
    with pytest.raises(UserError, match=said):
        open_run.open_machine(keys.read(changed(tiny(), **values)))


def test_an_evaluation_needs_no_batch_size_that_divides():
    assert open_run.open_machine(keys.read(changed(keys.evaluate(), batch_size=12))).devices.size == 8


class Sorted(Squares):
    """Class by class."""

    def labels_at_hand(self, base):
        return np.sort(self.labels(base))


@pytest.mark.parametrize(
    "task, values, refuses",
    [
        ("pretrain", {}, True),
        ("pretrain", {"evals.every_epochs": 0.0}, True),
        ("pretrain", {"evals.final": False}, True),
        ("pretrain", {"evals.every_epochs": 0.0, "evals.final": False}, False),
        ("evaluate", {}, True),
        ("evaluate", {"protocols": ("spectrum",)}, False),
        ("finetune", {}, True),
    ],
)
def test_slices_with_different_classes_are_an_error(tmp_path, capsys, task, values, refuses):
    """Except for a resumed run, or one that does not measure classes: these get a warning."""
    splits = {"data.train_split": "learn[:40]", "data.val_split": "learn[40:]"}
    config = changed(getattr(keys, task)(), **splits | values)
    said = "8 images of learn[40:] are of classes that no image of learn[:40] has: 8, 9"
    if refuses:
        with pytest.raises(UserError, match=re.escape(f'{said}. Name "learn.mixed[:40]" and "learn.mixed[40:]"')):
            open_run.check_classes(keys.read(config), str(tmp_path), Sorted())
        (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    open_run.check_classes(keys.read(config), str(tmp_path), Sorted())
    assert capsys.readouterr().err == f"WARNING: {said}\n"
    config = changed(config, **{"data.train_split": "learn", "data.val_split": "look"})
    open_run.check_classes(keys.read(config), str(tmp_path), Sorted())
    assert capsys.readouterr().out == ""
