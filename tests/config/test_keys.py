"""Values of configs: the small form of each recipe has the same data, and impossible numbers are an error."""

import importlib
import re
from pathlib import Path

import pytest

from bt_jax.augment import recipes
from bt_jax.config import arguments, keys
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


def refused(task, key, value):
    """The error for a value of a key; a tuple gets it as its last number."""
    config = getattr(keys, task)()
    default = arguments.flatten(config.to_dict())[key]
    kind = tuple if default is None else type(default)
    number = value if kind is tuple else kind(value)
    config.update_from_flattened_dict({key: (1.0, number) if kind is tuple else number})
    with pytest.raises(UserError, match=f"^config.{key}=") as caught:
        keys.read(config)
    return str(caught.value)


def numbers(task):
    """The keys with a number, or several; the fields of a view and the options of a method have checks of their own."""
    flat = arguments.flatten(getattr(keys, task)().to_dict())
    checked = {key: value for key, value in flat.items() if not key.startswith(("views.view", "objective.", "seed"))}
    several = {"views.mean", "views.std", *(key for key, value in flat.items() if isinstance(value, tuple))}
    return [k for k, v in checked.items() if type(v) in (int, float) or k in several - {"protocols"}]


@pytest.mark.parametrize("task", keys.TASKS)
def test_no_number_is_negative(task):
    known = numbers(task)
    assert len(known) > 20 and {"views.mean", "checkpoint.keep_last"} < set(known)
    for key in known:
        assert re.search("must be positive|must not be negative|is not between 0 and 1", refused(task, key, -1)), key


@pytest.mark.parametrize(
    "task, key",
    [("pretrain", key) for key in ("batch_size", "total_epochs", "nonfinite_limit", "evals.batch_size", "views.size")]
    + [("pretrain", key) for key in ("log.every_steps", "checkpoint.keep_last", "watch.silent_seconds", "data.canvas")]
    + [("pretrain", key) for key in ("evals.knn_k", "evals.knn_temperature", "model.width", "model.projector")]
    + [("pretrain", key) for key in ("optim.trust_coefficient", "optim.grad_scale", "views.std")]
    + [("evaluate", key) for key in ("evals.knn_k", "evals.knn_temperature", "evals.linear_epochs", "views.std")]
    + [("finetune", key) for key in ("data.fraction", "optim.drop_factor", "data.canvas", "evals.batch_size")],
)
def test_numbers_that_must_be_positive(task, key):
    said = refused(task, key, 0)
    assert re.search(rf"^config.{key}=.* must be positive. Set --config.{key} to (a )?positive number", said), said


def test_zero_is_a_value_of_every_other_number():
    config = keys.pretrain()
    for key in ("extend_epochs", "checkpoint.every_epochs", "evals.every_epochs", "watch.stuck_seconds", "probe.lr"):
        config.update_from_flattened_dict({key: 0.0})
    assert keys.read(config).probe.lr == 0


@pytest.mark.parametrize(
    "task, key",
    [("pretrain", key) for key in ("data.broken_limit", "optim.momentum", "probe.momentum")]
    + [("finetune", key) for key in ("data.broken_limit", "data.fraction", "views.crop_scale", "views.flip")],
)
def test_shares_are_at_most_one(task, key):
    assert f"is not between 0 and 1. Set --config.{key} to 0 ... 1." in refused(task, key, 1.5)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 2**64])
def test_invalid_seeds(seed):
    """JAX would use 0 for 2**32, and fail with more than 64 bits."""
    config = keys.finetune()
    config.seed = 2**32 - 1
    keys.read(config)
    config.seed = seed
    with pytest.raises(UserError, match=f"config.seed={seed} is not a seed"):
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
    with pytest.raises(UserError, match="config.model.projector=wide,64 is not a list of numbers. Write e.g."):
        keys.read(config)


def test_an_unknown_key_of_a_config_file_is_an_error():
    """ml_collections locks a config only after the file has run."""
    config = keys.pretrain()
    config.epoch = 3
    with pytest.raises(UserError, match="sets the unknown key config.epoch. Keys of config: "):
        keys.read(config)
    config = keys.pretrain()
    config.optim.lr = 3
    with pytest.raises(UserError, match="sets the unknown key config.optim.lr. Keys of config.optim: "):
        keys.read(config)
