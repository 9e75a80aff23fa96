"""What all tasks open alike."""

import json

import pytest

from bt_jax.config import arguments, keys
from bt_jax.data import feeds
from bt_jax.messages import UserError
from bt_jax.tasks import open_run
from tests.support.runs import changed, tiny
from tests.support.wiring import Squares


def test_another_training_split_leaves_the_config_as_it_is(monkeypatch, tmp_path):
    """What is recorded is what was asked for, and resuming compares it."""
    monkeypatch.setattr(feeds, "open_source", lambda *_, **__: Squares())
    config = changed(keys.pretrain(), **{"data.train_split": "learn[8:40]", "data.val_split": "learn", "batch_size": 8})
    before = arguments.to_dict(config)
    mesh = open_run.open_machine(keys.read(config))
    data = open_run.open_data(config, mesh, 3, lambda source: (source, "look"))
    assert data.train_split == "look" and data.feed.images == 26
    assert open_run.open_schedule(config, data).steps_per_epoch == 26 // 8
    folder = open_run.open_folder(config, str(tmp_path / "run"), data, "squares")
    assert json.loads((folder / "config.json").read_text()) == arguments.to_dict(config) == before


@pytest.mark.parametrize(
    "values, said",
    [
        ({"batch_size": 0}, "must be positive"),
        ({"devices": 3}, "config.devices=3, but there are 8"),
        ({"batch_size": 12}, "is not divisible by 8 devices"),
    ],
)
def test_what_no_run_can_have_is_refused(values, said):
    with pytest.raises(UserError, match=said):
        open_run.open_machine(keys.read(changed(tiny(), **values)))


def test_an_evaluation_needs_no_batch_that_divides():
    assert open_run.open_machine(keys.read(changed(keys.evaluate(), batch_size=12))).devices.size == 8
