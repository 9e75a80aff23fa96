"""Values of configs: the small form of each recipe is of the same data, and impossible numbers are refused."""

import importlib
from pathlib import Path

import pytest

from bt_jax.config import keys
from bt_jax.messages import UserError
from configs import quickstart

CONFIGS = {path.stem: path for path in Path(quickstart.__file__).parent.glob("*.py")}


@pytest.mark.parametrize("name", CONFIGS)
def test_smoke_trains_on_training_images(name):
    """The same splits as the whole recipe, cut: nothing is trained on what it is tested on."""
    arguments = ",val=val" if name == "pretrain_folder" else ""
    get_config = importlib.import_module(f"configs.{name}").get_config
    whole, smoke = get_config(arguments.lstrip(",")), get_config(f"smoke{arguments}")
    for split in ("train_split", "val_split"):
        assert smoke.data[split].partition("[")[0] in whole.data[split].split("+")
    assert not set(smoke.data.train_split.split("+")) & {smoke.data.val_split, smoke.data.val_split.partition("[")[0]}
    assert smoke.task == whole.task and smoke.data.name == whole.data.name
    if smoke.task == "pretrain":
        assert smoke.data.train_split != whole.data.train_split and smoke.batch_size <= 64


@pytest.mark.parametrize("key", ["batch_size", "total_epochs", "evals.batch_size", "log.every_steps", "views.size"])
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_that_must_be_positive(key, value):
    config = keys.pretrain()
    keys.check(config)
    config.update_from_flattened_dict({key: float(value) if key == "total_epochs" else value})
    with pytest.raises(UserError, match=f"config.{key}={value}.* must be positive"):
        keys.check(config)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 2**64])
def test_seeds_that_are_none(seed):
    """JAX would take 2**32 for 0, and fail on what has more than 64 bits."""
    config = keys.finetune()
    config.seed = 2**32 - 1
    keys.check(config)
    config.seed = seed
    with pytest.raises(UserError, match=f"config.seed={seed} is no seed"):
        keys.check(config)
