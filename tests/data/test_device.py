"""Several steps in one dispatch, as on an accelerator, equal single steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax import sharding
from bt_jax.data import device
from bt_jax.data.order import epoch_order


class Seen(NamedTuple):
    step: jax.Array
    sum: jax.Array


def _step(state, batch):
    """A fake training step that records the order and the content of its batches."""
    seen = jnp.sum(batch["image"].astype(jnp.int32).sum((1, 2, 3)) * (1 + jnp.arange(16)))
    return Seen(state.step + 1, 3 * state.sum + seen), {"ids": batch["id"], "label": batch["label"]}


@pytest.mark.parametrize("devices", (1, 8))
def test_scan_equals_single_steps(devices):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (70, 4, 4, 3), np.uint8), np.arange(70)
    data = device.put_arrays(images, labels, mesh)
    order = epoch_order(jax.random.key(0), 0, 70)
    run = device.make_dispatch(_step, batch_size=16, mesh=mesh, first_id=1000)

    def fresh():
        return sharding.put_replicated(Seen(jnp.int32(0), jnp.int32(0)), mesh)

    together, shown = run(fresh(), data, order, steps=4)
    state, ids = fresh(), []
    for _ in range(4):
        state, one = run(state, data, order, steps=1)
        ids.append(np.asarray(one["ids"]))
        np.testing.assert_array_equal(one["label"], ids[-1] - 1000)  # ids are positions in the whole split
    assert int(together.sum) == int(state.sum) and int(together.step) == 4
    np.testing.assert_array_equal(shown["ids"], ids)
    np.testing.assert_array_equal(np.concatenate(ids) - 1000, np.asarray(order)[:64])
