"""Values of configs: the small form of each recipe is of the same data, and impossible numbers are refused."""

import importlib
from pathlib import Path

import pytest

from bt_jax.config import keys
from bt_jax.configs import quickstart
from bt_jax.data.sources.selection import MIXED
from bt_jax.messages import UserError

CONFIGS = {path.stem: path for path in Path(quickstart.__file__).parent.glob("[!_]*.py")}


@pytest.mark.parametrize("name", CONFIGS)
def test_smoke_trains_on_training_images(name):
    """The same splits as the whole recipe, cut: nothing is trained on what it is tested on."""
    arguments = ",val=val" if name == "pretrain_folder" else ""
    get_config = importlib.import_module(f"bt_jax.configs.{name}").get_config
    whole, smoke = get_config(arguments.lstrip(",")), get_config(f"smoke{arguments}")
    for split in ("train_split", "val_split"):
        assert smoke.data[split].partition("[")[0].removesuffix(MIXED) in whole.data[split].split("+")
    assert not set(smoke.data.train_split.split("+")) & {smoke.data.val_split, smoke.data.val_split.partition("[")[0]}
    assert smoke.task == whole.task and smoke.data.name == whole.data.name
    if smoke.task == "pretrain":
        assert smoke.data.train_split != whole.data.train_split and smoke.batch_size <= 64


@pytest.mark.parametrize("key", ["batch_size", "total_epochs", "evals.batch_size", "log.every_steps", "views.size"])
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_that_must_be_positive(key, value):
    config = keys.pretrain()
    keys.read(config)
    config.update_from_flattened_dict({key: float(value) if key == "total_epochs" else value})
    with pytest.raises(UserError, match=f"config.{key}={value}.* must be positive"):
        keys.read(config)
