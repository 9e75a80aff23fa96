"""The influence of the seed: on the views of each step, and on the initial parameters."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bt_jax import augment, models, randomness, sharding
from bt_jax.augment import recipes
from bt_jax.config import keys
from bt_jax.objectives.barlow_twins import BarlowTwins
from bt_jax.state import Nets
from bt_jax.train import build
from bt_jax.train import step as train_step
from bt_jax.train.epochs import Plan
from tests.support.runs import changed


def test_views_follow_seed_step_and_id(monkeypatch):
    """`two_views` receives the key of (seed, step), the ids and the sizes. Its pixels are tested with `augment`."""
    calls = []

    def two_views(key, images, recipe, *, ids, sizes):
        calls.append((np.asarray(jax.random.key_data(key)), ids, sizes))
        return images, images

    monkeypatch.setattr(augment, "two_views", two_views)
    batch = {"image": np.zeros((2, 4, 4, 3), np.uint8), "id": np.array([5, 9]), "label": "labels", "size": "sizes"}
    for seed in (0, 7):
        step = train_step.make_step(lambda state, views, batch: batch["label"], recipes.cifar(4), seed=seed)
        for at in (0, 3):
            assert step(SimpleNamespace(step=at), batch) == "labels"
            expected = jax.random.fold_in(randomness.stream(seed, randomness.VIEWS), at)
            key, ids, sizes = calls[-1]
            np.testing.assert_array_equal(key, jax.random.key_data(expected))
            assert ids is batch["id"] and sizes == "sizes"
    assert len({key.tobytes() for key, *_ in calls}) == 4


def test_every_purpose_and_seed_has_its_own_key():
    purposes = (randomness.INIT, randomness.ORDER, randomness.VIEWS, randomness.MONITOR, randomness.OBJECTIVE)
    streams = [randomness.stream(seed, purpose) for seed in (0, 1) for purpose in purposes]
    assert len({np.asarray(jax.random.key_data(key)).tobytes() for key in streams}) == 10


def test_the_probe_starts_small():
    """Its kernel is N(0, 0.01) and its bias zero, as the reference's classifier. It exists without labels too."""
    nets = Nets(models.build_projector(4, (64,)), {"projector": models.build_projector(64, (8,))})
    tx, objective = optax.sgd(0.1), BarlowTwins()
    state = jax.jit(lambda key: build.initial_state(key, nets, tx, objective, probe_classes=500))(jax.random.key(0))
    probe = state.params["probe"]
    assert 0.0095 < float(np.std(probe["kernel"])) < 0.0105 and not np.any(probe["bias"])
    assert probe["kernel"].shape == (64, 500) and int(state.step) == int(state.bad_steps) == 0
    config = changed(keys.pretrain(), **{"model.width": 0.125, "model.projector": (8,)})
    training = build.build_training(config, Plan(1, 1), recipes.cifar(8), 0, sharding.make_mesh(jax.devices()[:1]))
    shapes = jax.eval_shape(training.create, jax.random.key(0))
    assert shapes.params["probe"]["bias"].shape == (1,) and shapes.params["probe"]["bias"].dtype == jnp.float32
