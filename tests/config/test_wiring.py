"""Every config key has its effect: the tests set it to a special value and check that its user receives it."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from bt_jax import models, randomness, sharding
from bt_jax.augment.recipes import View
from bt_jax.config import arguments, keys
from bt_jax.data.sources import selection
from bt_jax.evals import protocols, spectrum
from bt_jax.objectives import barlow_twins
from bt_jax.objectives.barlow_twins import BarlowTwins
from bt_jax.report import panels
from bt_jax.run_folder import opening
from bt_jax.tasks import evaluate, finetune, from_encoder, open_run, pretrain
from bt_jax.train import build, step
from bt_jax.train.progress import Progress
from bt_jax.weights import load
from tests.support.paths import ROOT
from tests.support.runs import changed
from tests.support.wiring import Enough, Mean, Squares, stop, watched

TESTS = ROOT / "tests"


# Pretraining ----------------------------------------------------------------------------------------------------------

# Key: its value, where the value is used, and the expected value there if it differs.
VIEW = View((0.3, 0.9), (0.5, 2.0), "bilinear", 0.25, 0.7, 0.3, 0.2, 0.1, 0.05, 0.15, 0.6, (0.2, 1.5), 0.35, 0.4)
PRETRAIN = {
    "seed": (7, lambda seen: set(seen.all("stream", "seed")), {7}),
    "batch_size": (8, lambda seen: seen.run.training.plan.steps_per_epoch, 5),
    "total_epochs": (3.0, lambda seen: seen.run.training.plan.total_steps, 20),
    "extend_epochs": (1.0, lambda seen: seen.run.training.plan.total_steps, 20),
    "data.name": ("mine", lambda seen: seen.one("open_source", "name")),
    "data.dir": ("/d", lambda seen: seen.one("open_source", "data_dir")),
    "data.folder": ("/f", lambda seen: seen.one("open_source", "folder")),
    "data.npz": ("/n", lambda seen: seen.one("open_source", "npz")),
    "data.broken_limit": (0.25, lambda seen: seen.one("UnreadableImages", "limit")),
    "data.train_split": ("learn[4:44]", lambda seen: seen.all("passes", "split")[0]),
    "data.val_split": ("look[2:]", lambda seen: seen.all("passes", "split")[1:], ["look[2:]"] * 2),
    "log.every_steps": (3, lambda seen: seen.feed.window(0)),
    "checkpoint.keep_last": (5, lambda seen: seen.one("Checkpoints", "keep_last")),
    "checkpoint.keep_every_epochs": (2.0, lambda seen: seen.one("Checkpoints", "keep_every"), 10),
    "views.name": ("imagenet", lambda seen: seen.one("make_step", "recipe").view2.solarize, 0.2),
    "views.size": (12, lambda seen: seen.one("make_step", "recipe").size),
    "views.mean": ((0.1, 0.2, 0.3), lambda seen: seen.one("make_step", "recipe").mean),
    "views.std": ((0.4, 0.5, 0.6), lambda seen: seen.one("make_step", "recipe").std),
    "model.arch": ("resnet34", lambda seen: seen.one("build", "arch")),
    "model.width": (0.5, lambda seen: seen.one("build", "width")),
    "model.small_images": (False, lambda seen: seen.one("build", "small_images")),
    "model.stem_padding": (2, lambda seen: seen.one("build", "stem_padding")),
    "model.zero_init_residual": (False, lambda seen: seen.one("build", "zero_init_residual")),
    "model.projector": ((16, 24), lambda seen: seen.one("build_projector", "widths")),
    "model.projector_bias": (True, lambda seen: seen.one("build_projector", "bias")),
    "model.projector_sharding": (
        "sharded",
        lambda seen: {seen.one(name, "projector") for name in ("make_update", "state_sharding")},
        {"sharded"},
    ),
    "objective.two_passes": (False, lambda seen: seen.forward_rows, False),
    "objective.lambd": (0.02, lambda seen: seen.one("barlow_twins", "lambd")),
    "objective.form": ("gram", lambda seen: seen.one("barlow_twins", "form")),
    "evals.every_epochs": (2.0, lambda seen: {each.every_steps for each in seen.run.training.evaluators}, {10}),
    "evals.batch_size": (17, lambda seen: set(seen.all("eval_batches", "batch_size")), {24}),  # of eight devices
    "evals.size": (10, lambda seen: seen.one("make_embed", "recipe").size),
    "evals.resize": (11, lambda seen: seen.one("make_embed", "resize")),
    "evals.train_images": (30, lambda seen: seen.all("passes", "limit")[0]),
    "evals.val_images": (20, lambda seen: seen.all("passes", "limit")[1]),
    "evals.spectrum_images": (15, lambda seen: seen.all("passes", "limit")[2]),
    "evals.knn_k": (9, lambda seen: seen.one("KNN", "ks"), (9,)),
    "evals.knn_temperature": (0.33, lambda seen: seen.one("KNN", "temperatures"), (0.33,)),
}
PRETRAIN |= {
    f"views.view1.{field.name}": (
        getattr(VIEW, field.name),
        lambda seen, name=field.name: getattr(seen.one("make_step", "recipe").view1, name),
    )
    for field in dataclasses.fields(View)
}
OPTIMIZER = "test_the_optimizer_follows_the_config"
PROGRAM = "test_a_key_of_the_program_has_its_effect"
LOOP = "test_who_has_its_turn_when"
# Key or prefix of keys: the test for it.
HELD = {
    "task": PROGRAM,
    "watch.": PROGRAM,
    "smoke": "test_the_numbers_of_a_smoke_run_mean_nothing",
    "compile_cache": PROGRAM,
    "self_check": "test_the_program_begins_with_the_self_check_unless_it_is_switched_off",
    "platform": "test_missing_accelerator",
    "devices": "test_missing_accelerator",
    "stop_after_steps": LOOP,
    "checkpoint.every_epochs": LOOP,
    "log.tensorboard": LOOP,
    "log.mlflow": "test_a_tracker_gets_every_line_of_a_run",
    "log.wandb": "test_wandb",
    "nonfinite_limit": "test_the_limit_of_steps_that_are_not_finite",
    "data.on_device": "test_a_streaming_key_reaches_the_pipeline",
    "data.reader": "test_the_reader_of_a_data_set",
    "data.canvas": "test_a_streaming_key_reaches_the_pipeline",
    "data.exif_orientation": "test_the_config_key_reaches_the_source",
    "data.shuffle_buffer": "test_a_streaming_key_reaches_the_pipeline",
}
HELD_PRETRAIN = HELD | {
    "data.labels": "test_the_key_of_pretraining",
    "tuned_batch_size": "test_batch_changed_behind_the_recipe_warns",
    "init_from": "test_initial_weights",
    "objective.name": "test_the_method_of_the_config_is_built",
    "views.view2.": "test_views_are_set_key_by_key",
    "model.dtype": "test_the_dtype_reaches_both_networks",
    "optim.": OPTIMIZER,
    "probe.": OPTIMIZER,
    "evals.final": "test_rows_of_the_table_belong_to_the_encoders_they_name",
}


class Whole:
    """Replaces a split projector by the plain projector."""

    def __new__(cls, net, mesh):
        return net


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A pretraining run, built from a config with the values of the table."""
    with pytest.MonkeyPatch.context() as patch:
        seen = watched(patch)
        seen.watch(open_run, "Checkpoints", lambda *_, **__: SimpleNamespace())
        seen.watch(models, "build", lambda *_, **__: Mean())
        seen.watch(models, "build_projector", lambda *_, **__: Mean())
        for where, name in (
            (step, "make_update"),
            (step, "make_step"),
            (barlow_twins, "barlow_twins"),
            (sharding, "state_sharding"),
        ):
            seen.watch(where, name)
        patch.setattr(step, "SplitProjector", Whole)
        config = changed(keys.pretrain(), **{key: value for key, (value, *_) in PRETRAIN.items()})
        seen.run = pretrain._prepare(keys.read(config), str(tmp_path_factory.mktemp("run")), 0.0)
        rows, apply = [], Mean.apply
        patch.setattr(Mean, "apply", lambda self, v, x, *, train: rows.append(len(x)) or apply(self, v, x, train=train))
        shapes = seen.run.training.like()
        batch = {"image": jnp.zeros((8, 8, 8, 3), jnp.uint8), "id": jnp.arange(8), "label": jnp.arange(8)}
        _, seen.metrics = jax.eval_shape(seen.run.training.step, shapes, batch)
        seen.forward_rows = rows[0] == 8
        return seen


@pytest.mark.parametrize("key", PRETRAIN)
def test_a_pretraining_key_has_its_effect(prepared, key):
    arrives(prepared, keys.pretrain(), key, *PRETRAIN[key])


def arrives(seen, config, key, value, look, *expected):
    default = arguments.flatten(config.to_dict())[key]
    assert value != default or key == "model.dtype", "the value says nothing: it is the default"
    found, wanted = look(seen), expected[0] if expected else value
    assert found == wanted


def test_every_panel_is_of_a_metric_that_is_written(prepared):
    """The report finds its curves by name in metrics.jsonl."""
    progress = Progress(first_step=0, total_steps=1, batch_size=1, steps_per_epoch=1)
    written = {*prepared.metrics, *progress.measure(1), "val/knn_top1", "val/online_top1"}
    written |= {f"val/{name}" for name in spectrum.NAMES}
    groups = (panels.LOSS, panels.ACCURACY, panels.LABEL_FREE, panels.OPTIMIZATION)
    groups += panels.method_panels(BarlowTwins.metrics)
    assert {name for group in groups for panel in group for name, _ in panel.curves} <= written


def test_the_seed_reaches_every_stream(prepared):
    assert set(prepared.all("stream", "purpose")) == {
        randomness.INIT,
        randomness.VIEWS,
        randomness.MONITOR,
        randomness.OBJECTIVE,
    }
    assert set(prepared.all("stream", "seed")) == {7}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_dtype_reaches_both_networks(dtype):
    nets = build.build_nets(
        changed(keys.pretrain(), **{"model.dtype": dtype, "model.width": 1 / 64}).model, 3, BarlowTwins()
    )
    assert [net.options["dtype"] for net in (nets.backbone, *nets.heads.values())] == [dtype] * 2


def test_processes_compare_images_and_steps(prepared, tuned):
    """Differences that would separate processes within an epoch."""
    for seen in (prepared, tuned):
        (call,) = seen.of["check_same_run"]
        facts = {"images": 40, "steps_per_epoch": 5, "images of learn": 48, "images of look": 26}
        assert call["facts"].items() >= facts.items() and call["facts"]["classes"].startswith("10 (")


# Evaluation and fine-tuning -------------------------------------------------------------------------------------------

FROZEN = {
    "data.name": ("mine", lambda seen: seen.one("open_source", "name")),
    "data.dir": ("/d", lambda seen: seen.one("open_source", "data_dir")),
    "data.folder": ("/f", lambda seen: seen.one("open_source", "folder")),
    "data.npz": ("/n", lambda seen: seen.one("open_source", "npz")),
    "data.broken_limit": (0.25, lambda seen: seen.one("UnreadableImages", "limit")),
    "views.size": (12, lambda seen: seen.one("make_embed", "recipe").size),
    "evals.resize": (14, lambda seen: seen.one("make_embed", "resize")),
    "evals.batch_size": (17, lambda seen: set(seen.all("eval_batches", "batch_size")), {24}),
}
EVALUATE = FROZEN | {
    "seed": (7, lambda seen: set(seen.all("stream", "seed")), {7}),
    "data.train_split": ("learn[4:44]", lambda seen: seen.all("passes", "split")[0]),
    "data.val_split": ("look[2:]", lambda seen: seen.all("passes", "split")[1:], ["look[2:]"] * 2),
    "protocols": (("spectrum", "linear", "knn"), lambda seen: seen.order, ["spectrum", "linear", "knn"]),
    "evals.train_images": (30, lambda seen: seen.all("passes", "limit")[0]),
    "evals.val_images": (20, lambda seen: seen.all("passes", "limit")[1]),
    "evals.spectrum_images": (15, lambda seen: seen.all("passes", "limit")[2]),
    "evals.knn_k": ((9, 3), lambda seen: seen.one("KNN", "ks")),
    "evals.knn_temperature": ((0.3, 0.2), lambda seen: seen.one("KNN", "temperatures")),
    "evals.linear_epochs": (4, lambda seen: seen.one("LinearProbe", "epochs")),
}
ENCODER = {
    "encoder": "test_wrong_input",
    "scratch": "test_scratch_has_the_same_architecture_with_new_weights",
    "arch": "test_wrong_input",
    "views.mean": "test_an_encoders_normalisation_can_be_set",
    "views.std": "test_an_encoders_normalisation_can_be_set",
}
# Keys of `_run` that only training uses.
OF_TRAINING = (
    "batch_size",
    "total_epochs",
    "extend_epochs",
    "stop_after_steps",
    "nonfinite_limit",
    "log.",
    "checkpoint.",
)
HELD_EVALUATE = HELD | ENCODER | dict.fromkeys(OF_TRAINING, "")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        seen = watched(patch)
        seen.watch(protocols, "LinearProbe")
        seen.watch(spectrum, "Spectrum")
        seen.watch(from_encoder, "open_encoder", given_encoder)
        made = evaluate._evaluators
        patch.setattr(evaluate, "_evaluators", lambda *them: setattr(seen, "order", [*made(*them)]))
        patch.setattr(opening, "open_folder", stop)
        config = changed(keys.evaluate(), encoder="given", **{key: value for key, (value, *_) in EVALUATE.items()})
        with pytest.raises(Enough):
            evaluate.run(config, str(tmp_path_factory.mktemp("run")))
        return seen


def given_encoder(config, **_):
    return from_encoder.Encoder(Mean(), jax.device_get(Mean().init(jax.random.key(0))), (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("key", EVALUATE)
def test_an_evaluation_key_has_its_effect(evaluated, key):
    arrives(evaluated, keys.evaluate(), key, *EVALUATE[key])


FINETUNE = FROZEN | {
    "seed": (
        7,
        lambda seen: {seen.one(name, "seed") for name in ("class_balanced_fraction", "make_step", "make_update")},
        {7},
    ),
    "batch_size": (8, lambda seen: seen.training.plan.steps_per_epoch, 5),
    "total_epochs": (3.0, lambda seen: seen.training.plan.total_steps, 20),
    "extend_epochs": (1.0, lambda seen: seen.training.plan.total_steps, 20),
    "data.train_split": ("learn[4:44]", lambda seen: seen.one("class_balanced_fraction", "split")),
    "data.val_split": ("look[2:]", lambda seen: seen.one("passes", "split")),
    "data.fraction": (0.99, lambda seen: seen.one("class_balanced_fraction", "fraction")),
    "train": ("layer", lambda seen: seen.one("make_update", "trained")["backbone"], ("layer",)),
    "batch_norm": ("train", lambda seen: seen.one("make_update", "objective").batch_statistics, True),
    "views.crop_scale": ((0.4, 0.9), lambda seen: seen.one("make_step", "recipe").view1.crop_scale),
    "views.flip": (0.25, lambda seen: seen.one("make_step", "recipe").view1.flip),
    "model.dtype": ("float32", lambda seen: seen.one("open_encoder", "dtype")),
    "log.every_steps": (3, lambda seen: seen.feed.window(0)),
    "checkpoint.keep_last": (5, lambda seen: seen.one("Checkpoints", "keep_last")),
    "checkpoint.keep_every_epochs": (2.0, lambda seen: seen.one("Checkpoints", "keep_every"), 10),
    "evals.every_epochs": (2.0, lambda seen: seen.training.evaluators[0].every_steps, 10),
    "evals.val_images": (20, lambda seen: seen.one("passes", "limit")),
}
SGD = "test_the_optimizer_of_finetuning_follows_the_config"
HELD_FINETUNE = HELD | ENCODER | {"optim.": SGD, "evals.train_images": ""}  # it trains on all images of a fraction


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        seen = watched(patch)
        seen.watch(open_run, "Checkpoints", lambda *_, **__: SimpleNamespace())
        seen.watch(from_encoder, "open_encoder", given_encoder)
        seen.watch(selection, "class_balanced_fraction", lambda source, split, *_, **__: Part())
        seen.watch(step, "make_update")
        seen.watch(step, "make_step")
        config = changed(keys.finetune(), encoder="given", **{key: value for key, (value, *_) in FINETUNE.items()})
        seen.training = finetune._prepare(
            keys.read(from_encoder.complete(config)), str(tmp_path_factory.mktemp("run")), 0.0
        ).training
        return seen


class Part(Squares):
    splits = Squares.splits | {"share": 40}


@pytest.mark.parametrize("key", FINETUNE)
def test_a_finetuning_key_has_its_effect(tuned, key):
    arrives(tuned, keys.finetune(), key, *FINETUNE[key])


def test_an_encoders_normalisation_can_be_set(monkeypatch):
    model = {"build": {"arch": "resnet18", "width": 1 / 64}, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    monkeypatch.setattr(load, "read", lambda path: (model, {}, None))
    config = changed(keys.evaluate(), **{"encoder": "x", "views.size": 9})
    known = from_encoder.open_encoder(config)
    assert (known.mean, known.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    own = from_encoder.open_encoder(
        changed(config, **{"views.mean": (0.7,) * 3, "views.std": (0.8,) * 3}), dtype="bfloat16"
    )
    assert (own.mean, own.std, own.net.options["dtype"]) == ((0.7,) * 3, (0.8,) * 3, "bfloat16")
    recipe = from_encoder.view_recipe(config.views, own)
    assert (recipe.size, recipe.mean, recipe.std) == (9, own.mean, own.std)


# All keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, table, held",
    [
        ("pretrain", PRETRAIN, HELD_PRETRAIN),
        ("evaluate", EVALUATE, HELD_EVALUATE),
        ("finetune", FINETUNE, HELD_FINETUNE),
    ],
)
def test_every_key_has_a_test(task, table, held):
    """A new key needs a row in the table or the name of its test. A removed key must have no row."""
    every = arguments.flatten(getattr(keys, task)().to_dict()).keys()
    missing = [key for key in every if key not in table and not key.startswith(tuple(held))]
    assert not missing and table.keys() <= every
    assert all(any(key.startswith(name) for key in every) for name in held)
    tests = set(re.findall(r"^def (test_\w+)", "".join(path.read_text() for path in TESTS.glob("**/test_*.py")), re.M))
    assert set(filter(None, held.values())) <= tests
