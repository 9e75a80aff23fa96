"""Values of configs: the small form of each recipe has the same data, and impossible numbers are an error."""

import importlib
from pathlib import Path

import pytest

from bt_jax.augment import recipes
from bt_jax.config import keys
from bt_jax.configs import quickstart
from bt_jax.data.sources.selection import MIXED
from bt_jax.messages import UserError

CONFIGS = {path.stem: path for path in Path(quickstart.__file__).parent.glob("[!_]*.py")}


@pytest.mark.parametrize("name", CONFIGS)
def test_smoke_trains_on_training_images(name):
    """Slices of the splits of the full recipe: no run trains on its test images."""
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


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 2**64])
def test_invalid_seeds(seed):
    """JAX would use 0 for 2**32, and fail with more than 64 bits."""
    config = keys.finetune()
    config.seed = 2**32 - 1
    keys.read(config)
    config.seed = seed
    with pytest.raises(UserError, match=f"config.seed={seed} is no seed"):
        keys.read(config)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", ["optim.momentum", "optim.lr_weights", "watch.stuck_seconds"])
def test_numbers_that_are_not_finite(key, value):
    """They would give a run of NaN and an invalid config.json."""
    config = keys.pretrain()
    config.update_from_flattened_dict({key: float(value)})
    with pytest.raises(UserError, match=f"config.{key}={value} is not finite"):
        keys.read(config)


@pytest.mark.parametrize("name, values", [("mean", (0.5, float("nan"), 0.5)), ("std", (0.5, 0.0, 0.5))])
def test_pixels_have_a_finite_mean_and_a_deviation(name, values):
    with pytest.raises(UserError, match=f"The view setting {name}=.* is invalid. Set it to"):
        recipes.recipe_from_config({"name": "imagenet", name: values})


def test_a_batch_of_one_image():
    """Batch norm and the loss need statistics. Fine-tuning may do without those of a batch."""
    config = keys.pretrain()
    config.batch_size = 1
    with pytest.raises(UserError, match="config.batch_size=1 leaves .* without statistics. Set --config.batch_size=2"):
        keys.read(config)
    config = keys.finetune()
    config.batch_size = 1
    assert keys.read(config).batch_size == 1


def test_a_list_of_numbers_that_is_text():
    config = keys.pretrain()
    config.model.projector = ("wide", "64")
    with pytest.raises(UserError, match="config.model.projector=wide,64 is no list of numbers. Write e.g."):
        keys.read(config)
