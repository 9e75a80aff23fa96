"""What all tasks open alike."""

import json

import pytest

from bt_jax.config import arguments, keys
from bt_jax.data import batches
from bt_jax.messages import UserError
from bt_jax.tasks import open_run
from tests.support.runs import changed, tiny
from tests.support.wiring import Squares


def test_another_training_split_leaves_the_config_as_it_is(monkeypatch, tmp_path):
    """What is recorded is what was asked for, and resuming compares it."""
    monkeypatch.setattr(batches, "open_source", lambda *_, **__: Squares())
    config = changed(keys.pretrain(), **{"data.train_split": "learn[8:40]", "data.val_split": "learn", "batch_size": 8})
    before = arguments.to_dict(config)
    mesh = open_run.open_machine(config)
    data = open_run.open_data(config, mesh, 3, lambda source: (source, "look"))
    assert data.train_split == "look" and data.feed.images == 26
    assert open_run.open_schedule(config, data).steps_per_epoch == 26 // 8
    folder = open_run.open_folder(config, str(tmp_path / "run"), data, "squares")
    assert json.loads((folder / "config.json").read_text()) == arguments.to_dict(config) == before


def test_what_makes_no_sense_leaves_no_folder(tmp_path):
    for values in ({"batch_size": 0}, {"devices": 3}, {"batch_size": 12}):
        with pytest.raises(UserError):
            open_run.open_machine(changed(tiny(), **values))
    assert open_run.open_machine(changed(keys.evaluate(), batch_size=12)).devices.size == 8  # it trains on no batch
