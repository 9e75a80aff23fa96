"""Feeds: batches on the device and streamed batches have the ids, labels and pixels of the whole split."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax import randomness, sharding
from bt_jax.config import keys
from bt_jax.data import batches as batches_lib
from bt_jax.data import feeds, pipeline
from tests.support.runs import changed
from tests.support.wiring import Calls, Squares


def streaming(monkeypatch, source, **values):
    """A streamed feed with a fake `pipeline`, and the arguments that the fake received."""
    calls = Calls(monkeypatch)

    def as_streamed(*_, **__):
        ids = itertools.count()
        while True:
            yield {
                "image": np.zeros((8, 2, 2, 3), np.uint8),
                "id": np.full(8, next(ids)),
                "label": np.zeros(8, np.int32),
            }

    calls.watch(pipeline, "train_batches", as_streamed)
    calls.watch(pipeline, "eval_batches", as_streamed)
    config = changed(keys.pretrain(), **{"batch_size": 8, "seed": 7, "data.train_split": "learn[4:44]"} | values)
    feed = feeds.make_feed(config, source, sharding.make_mesh(), "broken", 3)
    return calls, feed


def steps_of(feed, step, steps, at=0):
    """The metrics of some steps of a feed, as numpy."""
    everywhere = sharding.replicated(sharding.make_mesh())
    state = jax.device_put(SimpleState(jnp.int32(at)), everywhere)
    shown = []
    with feed.batches(step, state) as batches:
        for _ in range(steps):
            state, taken, metrics = batches.advance(state, 1, SimpleNamespace(immediate=False))
            assert taken == 1
            shown += metrics
        assert batches.wait_seconds >= 0
    return jax.device_get(shown)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SimpleState:
    step: jax.Array


def show(state, batch):
    return SimpleState(state.step + 1), {name: values for name, values in batch.items()}


def test_a_streaming_key_reaches_the_pipeline(monkeypatch):
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
    """An unlabelled stream has labels of -1, which the probe must not learn from."""
    source = Squares()
    for labelled in (True, False):
        monkeypatch.setattr(source, "labelled", lambda base, labelled=labelled: labelled, raising=False)
        _, feed = streaming(monkeypatch, source, **{"data.on_device": False})
        (shown,) = steps_of(feed, show, 1)
        assert ("label" in shown) == labelled and "id" in shown


def test_feeds_give_ids_and_labels_of_the_whole_split(monkeypatch):
    """Two epochs of a slice on the device. Each epoch has its own order, no image twice, and every image has the id,
    label and pixels of the whole split. A start in the middle gives the same remaining batches."""
    calls = Calls(monkeypatch)
    calls.watch(randomness, "stream")
    config = changed(keys.pretrain(), **{"batch_size": 8, "seed": 7, "data.train_split": "learn[5:45]"})
    feed = feeds.make_feed(config, Squares(), sharding.make_mesh(), None, 3)
    shown = steps_of(feed, show, 10)
    ids = np.stack([batch["id"] for batch in shown])
    for batch in shown:
        np.testing.assert_array_equal(batch["label"], batch["id"] % 10)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["id"])
    for epoch in (ids[:5], ids[5:]):
        assert sorted(epoch.ravel()) == list(range(5, 45))
    assert not np.array_equal(ids[:5], ids[5:])
    np.testing.assert_array_equal([batch["id"] for batch in steps_of(feed, show, 3, at=7)], ids[7:])
    assert calls.of["stream"] == [{"seed": 7, "purpose": randomness.ORDER}] * 2
    batch = next(feed.passes("look[3:20]", 0)())
    np.testing.assert_array_equal(batch["label"][:17], np.arange(3, 20) % 10)


def test_on_a_cpu_a_step_is_done_when_it_is_reported():
    """JAX returns from the dispatch of this product before it is done."""
    product = jax.jit(lambda x: (x, {"train/loss": jnp.linalg.matrix_power(x, 8).sum()}))
    ready = []

    class Products(batches_lib.Batches):
        def dispatch(self, state, most):
            state, self.newest = product(state)
            return state, self.newest, 1

    with Products(0) as batches:
        state = product(jnp.eye(700))[0]
        stop = SimpleNamespace(immediate=False)
        batches.advance(state, 3, stop, lambda step: ready.append(batches.newest["train/loss"].is_ready()))
    assert ready == [True] * 3


@pytest.mark.parametrize(
    "seconds, alone, taken",
    [(2.0, True, 4), (0.1, True, 10), (2.0, False, 10)],
)
def test_a_signal_stops_a_long_window(monkeypatch, seconds, alone, taken):
    """It stops after one step if the rest would last more than 5 s, but not in a multi-process run."""
    now = SimpleNamespace(seconds=0.0)
    stop = SimpleNamespace(immediate=False)
    monkeypatch.setattr(batches_lib, "time", SimpleNamespace(monotonic=lambda: now.seconds))

    class Slow(batches_lib.Batches):
        def dispatch(self, state, most):
            now.seconds += 300 if state == 0 else seconds  # the first step compiles
            stop.immediate = alone and state >= 3
            return state + 1, {}, 1

    with Slow(0) as batches:
        state, steps, metrics = batches.advance(0, 10, stop)
    assert state == steps == len(metrics) == taken
