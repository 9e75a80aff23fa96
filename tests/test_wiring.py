"""Every key of a config arrives where it has its effect: set to a value of its own, it is seen there."""

import dataclasses
import inspect
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax import (
    build,
    checkpoint,
    cli,
    cluster,
    encoder,
    evaluate,
    finetune,
    losses,
    main,
    models,
    pretrain,
    run_folder,
    sharding,
    train_step,
    watch,
)
from bt_jax import config as config_lib
from bt_jax import feed as feed_lib
from bt_jax.data import device, pipeline, selection
from bt_jax.data.records import Arrays, Source
from bt_jax.evals import features, protocols, spectrum
from bt_jax.recipes import View

TESTS = Path(__file__).parent


# What is looked at ----------------------------------------------------------------------------------------------------


class Squares(Source):
    """Images of one grey level, their id; the label is the id's last digit. Splits "learn" and "look"."""

    name, splits, num_classes, class_names = "squares", {"learn": 48, "look": 26}, 10, list("0123456789")

    def arrays(self, split, broken=None, *, channels=3):
        span = self.span(split)
        ids = np.arange(span.start, span.stop)
        images = np.broadcast_to(ids[:, None, None, None], (len(ids), 8, 8, channels)).astype(np.uint8)
        return Arrays(images, (ids % 10).astype(np.int32))

    def labels(self, base):
        return self.arrays(base).labels


class Mean:
    """A backbone of the mean of an image's pixels, and a projector of three of its features: quick to trace."""

    arch, options, feature_dim = "mean", {"dtype": "float32", "widths": [8]}, 8

    def init(self, key):
        return {"params": {"layer": {"kernel": jax.random.normal(key, (3, 8))}}, "batch_stats": {"m": jnp.zeros(8)}}

    def apply(self, variables, images, *, train):
        pixels = images.mean((1, 2)) if images.ndim == 4 else images
        h = pixels[:, :3] @ variables["params"]["layer"]["kernel"]
        return (h, variables["batch_stats"]) if train else h


class Calls:
    """Arguments of the calls of some functions, which are still called, or give `result` instead."""

    def __init__(self, patch):
        self.of, self._patch = {}, patch

    def watch(self, where, name, result=None):
        function, calls = getattr(where, name), self.of.setdefault(name, [])
        signature = inspect.signature(function)

        def called(*arguments, **options):
            bound = signature.bind(*arguments, **options)
            bound.apply_defaults()
            calls.append(dict(bound.arguments))
            return result(*arguments, **options) if result else function(*arguments, **options)

        self._patch.setattr(where, name, called)

    def all(self, name, argument):
        """The argument in every call, in their order."""
        return [call[argument] for call in self.of[name]]

    def one(self, name, argument):
        """The argument in the only call."""
        (value,) = self.all(name, argument)
        return value


class Enough(Exception):
    """Everything has been built."""


def stop(*arguments, **options):
    raise Enough


def changed(config, values):
    with config.unlocked():
        config.update_from_flattened_dict(values)
    return config


def watched(patch):
    """The calls by which data are opened and evaluators made, on images in memory."""
    calls = Calls(patch)
    calls.watch(feed_lib, "open_source", lambda *_, **__: Squares())
    calls.watch(feed_lib, "Broken")
    calls.watch(device, "eval_batches")
    calls.watch(features, "make_embed")
    calls.watch(protocols, "KNN")
    calls.watch(train_step, "stream")
    calls.watch(run_folder, "agree", lambda *_, **__: None)
    made = feed_lib.make_feed

    def make_feed(*arguments):
        """With the passes over splits on record."""
        feed = made(*arguments)

        def passes(split, limit):
            calls.of.setdefault("passes", []).append({"split": split, "limit": limit})
            start = feed.passes(split, limit)
            next(iter(start()))  # so that its batches have been asked for
            return start

        calls.feed = feed._replace(passes=passes)
        return calls.feed

    patch.setattr(feed_lib, "make_feed", make_feed)
    return calls


# Pretraining ----------------------------------------------------------------------------------------------------------

# Key: its value, where that is seen, and what is seen there if not the value itself.
VIEW = View((0.3, 0.9), (0.5, 2.0), "bilinear", 0.25, 0.7, 0.3, 0.2, 0.1, 0.05, 0.15, 0.6, (0.2, 1.5), 0.35, 0.4)
PRETRAIN = {
    "seed": (7, lambda seen: set(seen.all("stream", "seed")), {7}),
    "batch_size": (8, lambda seen: seen.run.loop.plan.steps_per_epoch, 5),
    "total_epochs": (3.0, lambda seen: seen.run.loop.plan.total_steps, 20),
    "extend_epochs": (1.0, lambda seen: seen.run.loop.plan.total_steps, 20),
    "data.name": ("mine", lambda seen: seen.one("open_source", "name")),
    "data.dir": ("/d", lambda seen: seen.one("open_source", "data_dir")),
    "data.folder": ("/f", lambda seen: seen.one("open_source", "folder")),
    "data.npz": ("/n", lambda seen: seen.one("open_source", "npz")),
    "data.broken_limit": (0.25, lambda seen: seen.one("Broken", "limit")),
    "data.train_split": ("learn[4:44]", lambda seen: seen.all("passes", "split")[0]),
    "data.val_split": ("look[2:]", lambda seen: seen.all("passes", "split")[1:], ["look[2:]"] * 2),
    "log.every_steps": (3, lambda seen: seen.feed.window(0)),
    "checkpoint.keep_last": (5, lambda seen: seen.one("Checkpoints", "keep_last")),
    "checkpoint.keep_every_epochs": (2.0, lambda seen: seen.one("Checkpoints", "keep_every"), 10),
    "views.name": ("imagenet", lambda seen: seen.one("make_pretrain_step", "recipe").view2.solarize, 0.2),
    "views.size": (12, lambda seen: seen.one("make_pretrain_step", "recipe").size),
    "views.mean": ((0.1, 0.2, 0.3), lambda seen: seen.one("make_pretrain_step", "recipe").mean),
    "views.std": ((0.4, 0.5, 0.6), lambda seen: seen.one("make_pretrain_step", "recipe").std),
    "model.arch": ("resnet34", lambda seen: seen.one("build", "arch")),
    "model.width": (0.5, lambda seen: seen.one("build", "width")),
    "model.small_images": (False, lambda seen: seen.one("build", "small_images")),
    "model.stem_padding": (2, lambda seen: seen.one("build", "stem_padding")),
    "model.zero_init_residual": (False, lambda seen: seen.one("build", "zero_init_residual")),
    "model.projector": ((16, 24), lambda seen: seen.one("build_projector", "widths")),
    "model.projector_bias": (True, lambda seen: seen.one("build_projector", "bias")),
    "model.head": (
        "sharded",
        lambda seen: {seen.one(name, "head") for name in ("make_update", "state_sharding")},
        {"sharded"},
    ),
    "model.two_passes": (False, lambda seen: seen.forward_rows, False),
    "loss.lambd": (0.02, lambda seen: seen.one("barlow_twins", "lambd")),
    "loss.form": ("gram", lambda seen: seen.one("barlow_twins", "form")),
    "loss.gather_dtype": ("bfloat16", lambda seen: seen.one("barlow_twins", "gather_dtype")),
    "evals.every_epochs": (2.0, lambda seen: {each.every_steps for each in seen.run.loop.evaluators}, {10}),
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
        lambda seen, name=field.name: getattr(seen.one("make_pretrain_step", "recipe").view1, name),
    )
    for field in dataclasses.fields(View)
}
OPTIMIZER = "test_the_optimizer_does_what_the_config_says"
PROGRAM = "test_a_key_of_the_program_arrives"
LOOP = "test_who_has_its_turn_when"
# Key, or the beginning of several: the test that holds it.
HELD = {
    "task": PROGRAM,
    "watch.": PROGRAM,
    "compile_cache": PROGRAM,
    "platform": "test_accelerator_that_is_absent",
    "devices": "test_accelerator_that_is_absent",
    "stop_after_steps": LOOP,
    "checkpoint.every_epochs": LOOP,
    "log.tensorboard": LOOP,
    "nonfinite_limit": "test_the_limit_of_steps_that_are_not_finite",
    "data.on_device": "test_a_key_of_streaming_arrives",
    "data.canvas": "test_a_key_of_streaming_arrives",
    "data.shuffle_buffer": "test_a_key_of_streaming_arrives",
}
HELD_PRETRAIN = HELD | {
    "tuned_batch_size": "test_batch_changed_behind_the_recipe_warns",
    "init_from": "test_begun_with_given_weights",
    "views.view2.": "test_views_are_set_key_by_key",
    "model.dtype": "test_the_dtype_reaches_both_networks",
    "optim.": OPTIMIZER,
    "probe.": OPTIMIZER,
    "evals.final": "test_rows_of_the_table_are_of_the_encoders_they_name",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Pretraining, built from a config in which every key of the table has the table's value."""
    with pytest.MonkeyPatch.context() as patch:
        seen = watched(patch)
        seen.watch(checkpoint, "Checkpoints", lambda *_, **__: SimpleNamespace())
        seen.watch(models, "build", lambda *_, **__: Mean())
        seen.watch(models, "build_projector", lambda *_, **__: Mean())
        for where, name in (
            (train_step, "make_update"),
            (train_step, "make_pretrain_step"),
            (losses, "barlow_twins"),
            (sharding, "state_sharding"),
        ):
            seen.watch(where, name)
        patch.setattr(train_step, "SplitProjector", lambda net, mesh: net)
        config = changed(config_lib.pretrain(), {key: value for key, (value, *_) in PRETRAIN.items()})
        seen.run = pretrain._prepare(config, str(tmp_path_factory.mktemp("run")), 0.0)
        rows, apply = [], Mean.apply
        patch.setattr(Mean, "apply", lambda self, v, x, *, train: rows.append(len(x)) or apply(self, v, x, train=train))
        shapes = jax.eval_shape(seen.run.fresh)
        batch = {"image": jnp.zeros((8, 8, 8, 3), jnp.uint8), "id": jnp.arange(8), "label": jnp.arange(8)}
        jax.eval_shape(seen.run.loop.step, shapes, batch)
        seen.forward_rows = rows[0] == 8
        return seen


@pytest.mark.parametrize("key", PRETRAIN)
def test_a_pretraining_key_arrives(prepared, key):
    arrives(prepared, config_lib.pretrain(), key, *PRETRAIN[key])


def arrives(seen, config, key, value, look, *expected):
    default = config_lib.flatten(config.to_dict())[key]
    assert value != default or key == "model.dtype", "the value says nothing: it is the default"
    found, wanted = look(seen), expected[0] if expected else value
    assert found == wanted


def test_the_seed_reaches_every_stream(prepared):
    assert set(prepared.all("stream", "purpose")) == {train_step.INIT, train_step.VIEWS, train_step.MONITOR}
    assert set(prepared.all("stream", "seed")) == {7}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_dtype_reaches_both_networks(dtype):
    nets = build.build_nets(changed(config_lib.pretrain(), {"model.dtype": dtype, "model.width": 1 / 64}), 3)
    assert [net.options["dtype"] for net in nets] == [dtype] * 2


def test_processes_compare_images_and_steps(prepared, tuned):
    """What would tear processes apart in the middle of an epoch."""
    for seen in (prepared, tuned):
        (call,) = seen.of["agree"]
        assert call["facts"] == {"images": 40, "steps_per_epoch": 5}


# Optimizer ------------------------------------------------------------------------------------------------------------

PARAMS = {
    "backbone": {"kernel": np.float32([[3.0, 4.0]]), "bias": np.float32([1.0])},
    "projector": {"kernel": np.float32([[0.0, 5.0]])},
    "probe": {"kernel": np.float32([[2.0, 0.0]]), "bias": np.float32([1.0])},
}
GRADIENT = jax.tree.map(lambda p: np.full_like(p, 0.5), PARAMS)


def updates(tx, steps, params=PARAMS, gradient=GRADIENT):
    """What the optimizer adds at each of some steps of one gradient, {"backbone/kernel": (steps,)}, first elements."""

    def step(state, _):
        update, state = tx.update(gradient, state, params)
        return state, update

    _, found = jax.jit(lambda: jax.lax.scan(step, tx.init(params), length=steps))()
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.array(a).reshape(steps, -1)[:, 0]
        for path, a in leaves
    }


def optimizer(**values):
    config = changed(config_lib.pretrain(), {"optim.warmup_epochs": 0.0, "batch_size": 512} | values)
    tx, rates = build.build_optimizer(config, build.Plan(5, 20))
    return tx, {name: float(rate(0)) for name, rate in rates.items()}


def test_the_optimizer_does_what_the_config_says():
    """SGD and LARS by hand at a batch of 512, where every rate is twice that of 256 images."""
    values = {"optim.name": "sgd", "optim.lr_weights": 0.3, "optim.lr_biases": 0.02, "optim.weight_decay": 0.1}
    values |= {"optim.momentum": 0.5, "optim.grad_scale": 0.25}
    values |= {"probe.lr": 0.7, "probe.momentum": 0.4, "probe.weight_decay": 0.05}
    values |= {"optim.end_factor": 0.5}
    tx, rates = optimizer(**values)
    assert rates == pytest.approx({"lr_weights": 0.6, "lr_biases": 0.04})
    found = updates(tx, 21)
    kernel, probe = found["backbone/kernel"], found["probe/kernel"]
    gradient = 0.25 * 0.5 + 0.1 * np.array([3.0, 1.0])
    np.testing.assert_allclose([kernel[0], found["backbone/bias"][0]], -gradient * [0.6, 0.04], rtol=1e-6)
    np.testing.assert_allclose(probe[0], -1.4 * (0.5 + 0.05 * 2), rtol=1e-6)
    cosine = 0.5 * (1 + np.cos(np.pi / 20))
    np.testing.assert_allclose(kernel[1] / kernel[0], 1.5 * (0.5 + 0.5 * cosine), rtol=1e-5)
    np.testing.assert_allclose(probe[1] / probe[0], 1.4 * cosine, rtol=1e-5)
    np.testing.assert_allclose(kernel[20], -0.5 * 0.6 * 2 * gradient[0], rtol=1e-4)  # the sum of the momentum is 2
    np.testing.assert_allclose(probe[20], 0, atol=1e-6)

    values = {"optim.trust_coefficient": 0.02, "optim.lr_weights": 0.3, "optim.weight_decay": 0.0, "optim.momentum": 0}
    warm = {"optim.warmup_epochs": 2.0, "optim.start_factor": 0.25}
    ratio = 0.02 * 5 / np.linalg.norm([0.5, 0.5])
    kernel = updates(optimizer(**values | warm)[0], 11)["backbone/kernel"]
    rates = 0.6 * np.array([0.25, 0.325, 1.0])  # at steps 0, 1 and 10, the end of two epochs
    np.testing.assert_allclose(kernel[[0, 1, 10]], -rates * ratio * 0.5, rtol=1e-5)
    kernel = updates(optimizer(**values | {"optim.clip": True, "optim.trust_coefficient": 20.0})[0], 1)[
        "backbone/kernel"
    ]
    np.testing.assert_allclose(kernel, -0.6 * 0.5, rtol=1e-5)  # cut at 1


# Evaluation and fine-tuning -------------------------------------------------------------------------------------------

FROZEN = {
    "data.name": ("mine", lambda seen: seen.one("open_source", "name")),
    "data.dir": ("/d", lambda seen: seen.one("open_source", "data_dir")),
    "data.folder": ("/f", lambda seen: seen.one("open_source", "folder")),
    "data.npz": ("/n", lambda seen: seen.one("open_source", "npz")),
    "data.broken_limit": (0.25, lambda seen: seen.one("Broken", "limit")),
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
    "scratch": "test_scratch_is_the_same_architecture_anew",
    "arch": "test_wrong_input",
    "views.mean": "test_an_encoders_normalisation_can_be_set",
    "views.std": "test_an_encoders_normalisation_can_be_set",
}
# Keys of `_run` that mean something to what trains alone.
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
        seen.watch(encoder, "open_encoder", given_encoder)
        made = evaluate._evaluators
        patch.setattr(evaluate, "_evaluators", lambda *them: setattr(seen, "order", [*made(*them)]))
        patch.setattr(run_folder, "open_folder", stop)
        config = changed(config_lib.evaluate(), {key: value for key, (value, *_) in EVALUATE.items()})
        with pytest.raises(Enough):
            evaluate.run(config, str(tmp_path_factory.mktemp("run")))
        return seen


def given_encoder(config, **_):
    return encoder.Encoder(Mean(), jax.device_get(Mean().init(jax.random.key(0))), (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("key", EVALUATE)
def test_an_evaluation_key_arrives(evaluated, key):
    arrives(evaluated, config_lib.evaluate(), key, *EVALUATE[key])


FINETUNE = FROZEN | {
    "seed": (7, lambda seen: {seen.one("share", "seed"), seen.one("make_step", "seed")}, {7}),
    "batch_size": (8, lambda seen: seen.loop.plan.steps_per_epoch, 5),
    "total_epochs": (3.0, lambda seen: seen.loop.plan.total_steps, 20),
    "extend_epochs": (1.0, lambda seen: seen.loop.plan.total_steps, 20),
    "data.train_split": ("learn[4:44]", lambda seen: seen.one("share", "split")),
    "data.val_split": ("look[2:]", lambda seen: seen.one("passes", "split")),
    "data.fraction": (0.99, lambda seen: seen.one("share", "fraction")),
    "train": ("layer", lambda seen: seen.one("make_step", "trained"), ("head", "layer")),
    "batch_norm": ("train", lambda seen: seen.one("make_step", "train"), True),
    "views.crop_scale": ((0.4, 0.9), lambda seen: seen.one("make_step", "recipe").view1.crop_scale),
    "views.flip": (0.25, lambda seen: seen.one("make_step", "recipe").view1.flip),
    "model.dtype": ("float32", lambda seen: seen.one("open_encoder", "dtype")),
    "log.every_steps": (3, lambda seen: seen.feed.window(0)),
    "checkpoint.keep_last": (5, lambda seen: seen.one("Checkpoints", "keep_last")),
    "checkpoint.keep_every_epochs": (2.0, lambda seen: seen.one("Checkpoints", "keep_every"), 10),
    "evals.every_epochs": (2.0, lambda seen: seen.loop.evaluators[0].every_steps, 10),
    "evals.val_images": (20, lambda seen: seen.one("passes", "limit")),
}
SGD = "test_the_optimizer_of_finetuning_does_what_the_config_says"
HELD_FINETUNE = HELD | ENCODER | {"optim.": SGD, "evals.train_images": ""}  # it trains on all of a share


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        seen = watched(patch)
        seen.watch(checkpoint, "Checkpoints", lambda *_, **__: SimpleNamespace())
        seen.watch(encoder, "open_encoder", given_encoder)
        seen.watch(selection, "share", lambda source, split, *_, **__: Part())
        seen.watch(finetune, "make_step")
        config = changed(config_lib.finetune(), {key: value for key, (value, *_) in FINETUNE.items()})
        seen.loop = finetune._prepare(encoder.complete(config), str(tmp_path_factory.mktemp("run")), 0.0).loop
        return seen


class Part(Squares):
    splits = Squares.splits | {"share": 40}


@pytest.mark.parametrize("key", FINETUNE)
def test_a_finetuning_key_arrives(tuned, key):
    arrives(tuned, config_lib.finetune(), key, *FINETUNE[key])


def test_the_optimizer_of_finetuning_does_what_the_config_says():
    def of(**values):
        config = changed(config_lib.finetune(), {f"optim.{name}": value for name, value in values.items()})
        config.total_epochs, config.extend_epochs = 3.0, 1.0
        tx, rates = finetune._optimizer(config, build.Plan(5, 20), ("head", "layer"))
        params = {"backbone": {"layer": {"kernel": np.float32([[2.0]])}}, "head": {"kernel": np.float32([[3.0]])}}
        found = updates(tx, 6, params, jax.tree.map(np.ones_like, params))
        return np.stack([found["head/kernel"], found["backbone/layer/kernel"]], axis=1), rates

    plain = {"lr_head": 0.4, "lr_backbone": 0.02, "momentum": 0.0, "weight_decay": 0.1}
    found, rates = of(**plain)
    wanted = np.array([-0.4 * 1.3, -0.02 * 1.2])
    np.testing.assert_allclose(found[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(found[5] / found[0], [0.5 * (1 + np.cos(np.pi / 4))] * 2, rtol=1e-5)  # of four epochs
    assert float(rates["lr_backbone"](0)) == pytest.approx(0.02)
    drops = {"schedule": "drops", "drop_epochs": (0.4,), "drop_factor": 0.25}
    found, _ = of(**plain | {"momentum": 0.5, "nesterov": True} | drops)
    np.testing.assert_allclose(found[[0, 1]], [1.5 * wanted, 1.75 * wanted], rtol=1e-5)
    np.testing.assert_allclose(found[3] / found[1], [0.25 * 1.9375 / 1.75] * 2, rtol=1e-5)


def test_an_encoders_normalisation_can_be_set(monkeypatch):
    model = {"build": {"arch": "resnet18", "width": 1 / 64}, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    monkeypatch.setattr(checkpoint, "read", lambda path: (model, {}, None))
    config = changed(config_lib.evaluate(), {"encoder": "x", "views.size": 9})
    known = encoder.open_encoder(config)
    assert (known.mean, known.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    own = encoder.open_encoder(changed(config, {"views.mean": (0.7,) * 3, "views.std": (0.8,) * 3}), dtype="bfloat16")
    assert (own.mean, own.std, own.net.options["dtype"]) == ((0.7,) * 3, (0.8,) * 3, "bfloat16")
    recipe = encoder.view_recipe(config, own)
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
def test_every_key_is_shown_to_arrive(task, table, held):
    """A new key needs a row in the table, or the name of the test that holds it; an old one leaves no row behind."""
    keys = config_lib.flatten(getattr(config_lib, task)().to_dict()).keys()
    missing = [key for key in keys if key not in table and not key.startswith(tuple(held))]
    assert not missing and table.keys() <= keys
    assert all(any(key.startswith(name) for key in keys) for name in held)
    tests = set(re.findall(r"^def (test_\w+)", "".join(path.read_text() for path in TESTS.glob("**/test_*.py")), re.M))
    assert set(filter(None, held.values())) <= tests


# The program and the feeds --------------------------------------------------------------------------------------------


def test_a_key_of_the_program_arrives(monkeypatch):
    values = {"watch.stuck_seconds": 11.0, "watch.silent_seconds": 12.0, "compile_cache": "/c", "task": "evaluate"}
    config = changed(config_lib.pretrain(), values)
    done = []
    monkeypatch.setattr(cli, "CONFIG", SimpleNamespace(value=config))
    for flag, value in {"WORKDIR": "/w", "COORDINATOR": "host:1", "PROCESSES": 4, "PROCESS": 3}.items():
        monkeypatch.setattr(main, flag, SimpleNamespace(value=value))
    for where, name in (
        (cluster, "start"),
        (watch, "begin"),
        (watch, "end"),
        (evaluate, "run"),
        (jax.config, "update"),
    ):
        monkeypatch.setattr(where, name, lambda *them, name=name, **named: done.append((name, *them, named)))
    main.main(["main"])
    cache, _, start, begin, run, end = done
    assert cache[:3] == ("update", "jax_compilation_cache_dir", "/c")
    assert start == ("start", "host:1", 4, 3, {"silent_seconds": 12.0})
    assert begin == ("begin", {"stuck_seconds": 11.0, "silent_seconds": 12.0})
    assert run[:3] == ("run", config, "/w") and end == ("end", {})
    monkeypatch.setattr(evaluate, "run", stop)
    with pytest.raises(Enough):
        main.main(["main"])
    assert done[-1] == ("end", {})  # also where the task fails


def streaming(monkeypatch, source, **values):
    """A feed of images that are streamed by a stand-in, and the arguments of `pipeline`."""
    calls = Calls(monkeypatch)

    def batches(*_, **__):
        ids = itertools.count()
        while True:
            yield {
                "image": np.zeros((8, 2, 2, 3), np.uint8),
                "id": np.full(8, next(ids)),
                "label": np.zeros(8, np.int32),
            }

    calls.watch(pipeline, "train_batches", batches)
    calls.watch(pipeline, "eval_batches", batches)
    config = changed(config_lib.pretrain(), {"batch_size": 8, "seed": 7, "data.train_split": "learn[4:44]"} | values)
    feed = feed_lib.make_feed(config, source, sharding.make_mesh(), "broken", 3)
    return calls, feed


def steps_of(feed, step, steps, at=0):
    """The metrics of some steps of a feed, as numpy."""
    everywhere = sharding.replicated(sharding.make_mesh())
    state = jax.device_put(SimpleState(jnp.int32(at)), everywhere)
    advance, waited, close = feed.begin(step, state)
    shown = []
    for _ in range(steps):
        state, metrics = advance(state, 1)
        shown += metrics
    assert waited() >= 0
    close()
    return jax.device_get(shown)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SimpleState:
    step: jax.Array


def show(state, batch):
    return SimpleState(state.step + 1), {name: values for name, values in batch.items()}


def test_a_key_of_streaming_arrives(monkeypatch):
    values = {"data.on_device": False, "data.canvas": 24, "data.shuffle_buffer": 99, "log.every_steps": 3}
    calls, feed = streaming(monkeypatch, Squares(), **values)
    assert len(steps_of(feed, show, 2, at=6)) == 2
    (asked,) = calls.of["train_batches"]
    wanted = {"split": "learn[4:44]", "batch_size": 8, "canvas": 24, "seed": 7, "start_step": 6, "shuffle_buffer": 99}
    assert (
        asked.items() >= (wanted | {"process_index": 0, "process_count": 1, "broken": "broken", "channels": 3}).items()
    )
    next(feed.passes("look", 5)())
    wanted = {"split": "look", "limit": 5, "canvas": 24, "batch_size": 504, "broken": "broken", "channels": 3}
    assert calls.of["eval_batches"][0].items() >= wanted.items()
    assert feed.images == 40 and [feed.window(at) for at in (0, 1, 5)] == [3, 2, 1]


def test_a_stream_without_labels_gives_none(monkeypatch):
    """The labels of a stream without any are all -1, and the probe is not to learn from them."""
    source = Squares()
    for labelled in (True, False):
        monkeypatch.setattr(source, "labelled", lambda base, labelled=labelled: labelled, raising=False)
        _, feed = streaming(monkeypatch, source, **{"data.on_device": False})
        (shown,) = steps_of(feed, show, 1)
        assert ("label" in shown) == labelled and "id" in shown


def test_feeds_give_ids_and_labels_of_the_whole_split(monkeypatch):
    """Two epochs of a cut split on the device: every image at most once in each, in an order of its own, with the id,
    label and pixels that it has in the whole split; begun in the middle, the rest is the same."""
    calls = Calls(monkeypatch)
    calls.watch(train_step, "stream")
    config = changed(config_lib.pretrain(), {"batch_size": 8, "seed": 7, "data.train_split": "learn[5:45]"})
    feed = feed_lib.make_feed(config, Squares(), sharding.make_mesh(), None, 3)
    shown = steps_of(feed, show, 10)
    ids = np.stack([batch["id"] for batch in shown])
    for batch in shown:
        np.testing.assert_array_equal(batch["label"], batch["id"] % 10)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["id"])
    for epoch in (ids[:5], ids[5:]):
        assert sorted(epoch.ravel()) == list(range(5, 45))
    assert not np.array_equal(ids[:5], ids[5:])
    np.testing.assert_array_equal([batch["id"] for batch in steps_of(feed, show, 3, at=7)], ids[7:])
    assert calls.of["stream"] == [{"seed": 7, "purpose": train_step.ORDER}] * 2
    batch = next(feed.passes("look[3:20]", 0)())
    np.testing.assert_array_equal(batch["label"][:17], np.arange(3, 20) % 10)
