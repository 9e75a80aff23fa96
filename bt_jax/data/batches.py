"""Where a run's batches come from: a data set that lives on the device, or one streamed from the host.

Both give the loop the same few functions, so that it need not know which one it has.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import compilers, messages, randomness, sharding
from bt_jax.data import device
from bt_jax.data.order import epoch_order
from bt_jax.data.prefetch import Prefetch
from bt_jax.data.sources.base import Source, evenly
from bt_jax.data.sources.broken import Broken
from bt_jax.data.sources.open_source import open_source
from bt_jax.data.sources.selection import with_mixed


class Feed(NamedTuple):
    """Where batches come from.

    Attributes:
      images: how many training images there are.
      begin: begin(step, state) -> (advance, waited, close), from the state's step on. advance(state, n) takes n steps
        and returns the state and a list of their metrics on the device; waited() is the seconds spent waiting for data
        so far.
      window: window(at_step) -> steps until the next good place to look up.
      sample: sample(n) -> a batch of n training images, as numpy.
      passes: passes(split, limit) -> a function that starts a pass over a split for evaluation: padded batches of
        numpy arrays with a "mask", of `limit` images, or of all where it is 0.
    """

    images: int
    begin: Callable
    window: Callable[[int], int]
    sample: Callable[[int], dict[str, np.ndarray]]
    passes: Callable[[str, int], Callable]


def open_data(config: ConfigDict) -> tuple[Source, Broken]:
    """The data set of `config.data`, and what is told of its unreadable images."""
    source = open_source(
        config.data.name or None,
        data_dir=config.data.dir or None,
        npz=config.data.npz or None,
        folder=config.data.folder or None,
        say=messages.say,
    )
    source = with_mixed(source, [*config.data.train_split.split("+"), config.data.val_split])
    return source, Broken(source, limit=config.data.broken_limit, say=messages.say)


def make_feed(
    config: ConfigDict, source: Source, mesh: Mesh, broken: Broken, channels: int, train_split: str = ""
) -> Feed:
    """On the device or streamed, as the config says.

    Args:
      broken: records the unreadable images.
      train_split: of `source`; the config's by default.
    """
    make = _resident if config.data.on_device else _streamed
    return make(config, source, mesh, broken, channels, train_split or config.data.train_split)


def _resident(config: ConfigDict, source: Source, mesh: Mesh, broken: Broken, channels: int, train_split: str) -> Feed:
    arrays = functools.cache(lambda split: source.arrays(split, broken, channels=channels))
    images, labels = arrays(train_split)
    steps_per_epoch = max(len(images) // config.batch_size, 1)
    size = device.dispatch_size(steps_per_epoch, config.log.every_steps)

    # Inside a loop XLA's CPU backend runs convolutions four times slower, so there a dispatch is one step.
    a_dispatch = 1 if jax.default_backend() == "cpu" else size

    def begin(step, state):
        at_step, layout = int(state.step), jax.tree.map(lambda leaf: leaf.sharding, state)
        replicated = sharding.replicated(mesh)
        data = device.put_arrays(images, labels, mesh)
        first_id = source.span(train_split).start
        dispatch = device.make_dispatch(step, batch_size=config.batch_size, mesh=mesh, first_id=first_id, layout=layout)
        # Made where it is used: a key cannot be put onto the devices of other processes.
        make_key = compilers.jit(lambda: randomness.stream(config.seed, randomness.ORDER), out_shardings=replicated)
        order_key = make_key()
        # By the step on the device: a number from the host would be a transfer.
        order_of = compilers.jit(lambda key, step: epoch_order(key, step // steps_per_epoch, len(images)))
        epoch, order = -1, None

        def advance(state, steps):
            nonlocal at_step, epoch, order
            if at_step // steps_per_epoch != epoch:
                epoch = at_step // steps_per_epoch
                order = order_of(order_key, state.step)
            at_step += steps
            shown = []
            while steps:
                state, metrics = dispatch(state, data, order, steps=min(steps, a_dispatch))
                shown.append(metrics)
                steps -= min(steps, a_dispatch)
            return state, shown

        return advance, lambda: 0.0, lambda: None

    def window(at_step):
        within = at_step % steps_per_epoch
        return min(size - within % size, steps_per_epoch - within)

    def passes(split, limit):
        keep = evenly(len(arrays(split).images), limit)
        chosen = [None if a is None else a[keep] for a in arrays(split)]
        return lambda: device.eval_batches(*chosen, batch_size=sharding.round_up(config.evals.batch_size, mesh))

    def sample(n):
        keep = evenly(len(images), n)
        return {"image": images[keep], "id": keep.astype(np.int32)}

    return Feed(len(images), begin, window, sample, passes)


def _streamed(config: ConfigDict, source: Source, mesh: Mesh, broken: Broken, channels: int, train_split: str) -> Feed:
    from bt_jax.data import pipeline  # imported here: it needs TensorFlow

    batch_size = sharding.round_up(config.evals.batch_size, mesh)
    decoding = {"canvas": config.data.canvas, "channels": channels, "broken": broken}
    train_images = source.span(train_split)

    def begin(step, state):
        layout = jax.tree.map(lambda leaf: leaf.sharding, state)
        batches = pipeline.train_batches(
            source,
            train_split,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=int(state.step),
            shuffle_buffer=config.data.shuffle_buffer or None,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            **decoding,
        )
        ahead = Prefetch(batches, lambda batch: sharding.put_batch(batch, mesh))
        jitted = compilers.jit(step, donate_argnums=0, out_shardings=(layout, sharding.replicated(mesh)))

        def advance(state, steps):
            shown = []
            for _ in range(steps):
                batch = next(ahead)
                if not source.labelled(train_images.base):
                    batch = {name: values for name, values in batch.items() if name != "label"}
                state, metrics = jitted(state, batch)
                shown.append(metrics)
                # Steps that are queued hold their batches: without this the host could run dozens ahead.
                jax.block_until_ready(shown[-3:-2])
            return state, shown

        return advance, lambda: ahead.wait_seconds, ahead.close

    def passes(split, limit):
        return lambda: pipeline.eval_batches(source, split, batch_size=batch_size, limit=limit, **decoding)

    def sample(n):
        batch = next(iter(pipeline.eval_batches(source, train_split, batch_size=n, **decoding)))
        return {name: batch[name][batch["mask"]] for name in ("image", "size", "id") if name in batch}

    every = config.log.every_steps
    images = train_images.stop - train_images.start
    return Feed(images, begin, lambda at_step: every - at_step % every, sample, passes)
