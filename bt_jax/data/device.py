"""A data set that lives whole on the device: order, gather, views and several training steps in one dispatch."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from bt_jax import compilers, sharding


def put_arrays(images: np.ndarray, labels: np.ndarray | None, mesh: Mesh) -> dict[str, jax.Array]:
    """{"image": uint8 (n, h, w, c), "label": int32 (n,)} with a copy on every device; no "label" without labels."""
    data = {"image": images} | ({} if labels is None else {"label": labels.astype(np.int32)})
    return sharding.put_replicated(data, mesh)


def make_dispatch(step: Callable, *, batch_size: int, mesh: Mesh, first_id: int = 0, layout=None) -> Callable:
    """Builds run(state, data, order, *, steps) -> (state, metrics): `steps` training steps within one epoch.

    An epoch is n // batch_size steps; the rest of the permutation is left out, as in the reference (drop_last).

    Args:
      first_id: id of the first image, where the data is a cut of a larger split.
      layout: shardings of the state, a pytree of its structure; None: a copy on every device.

    Returns:
      run, jitted, its state donated. order: of `epoch_order` for the state's epoch. metrics: every value of the step,
      stacked to (steps,).
    """

    def run(state, data, order, *, steps: int):
        steps_per_epoch = len(order) // batch_size

        def body(state, _):
            start = state.step % steps_per_epoch * batch_size
            ids = jax.lax.dynamic_slice(order, (start,), (batch_size,))
            batch = {name: values[ids] for name, values in data.items()} | {"id": ids + first_id}
            batch = jax.lax.with_sharding_constraint(batch, sharding.batch_sharding(mesh))
            return step(state, batch)

        if steps == 1:
            return body(state, None)
        return jax.lax.scan(body, state, length=steps)

    everywhere = sharding.replicated(mesh)
    return compilers.jit(
        run, static_argnames="steps", donate_argnums=0, out_shardings=(layout or everywhere, everywhere)
    )


def dispatch_size(steps_per_epoch: int, limit: int) -> int:
    """Steps a dispatch: at most `limit`, chosen so that an epoch is made of equal dispatches where that costs little.

    Every size is a program to compile. The largest divisor of the epoch is taken unless it is under half the limit;
    then the epoch is cut into equal parts but for the last.
    """
    limit = min(limit, steps_per_epoch)
    divisor = max(size for size in range(1, limit + 1) if steps_per_epoch % size == 0)
    parts = -(-steps_per_epoch // limit)
    return divisor if 2 * divisor >= limit else -(-steps_per_epoch // parts)


def eval_batches(images: np.ndarray, labels: np.ndarray | None, *, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """All images in order, {"image", "label", "mask"}; the last batch is padded and its padding masked out."""
    for start in range(0, len(images), batch_size):
        rows = {"image": images[start : start + batch_size]}
        if labels is not None:
            rows["label"] = labels[start : start + batch_size].astype(np.int32)
        count = len(rows["image"])
        padded = {name: _pad(values, batch_size) for name, values in rows.items()}
        readable = padded["label"] >= 0 if labels is not None else True  # those that were not have no label
        yield padded | {"mask": (np.arange(batch_size) < count) & readable}


def _pad(values: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([values, np.zeros((rows - len(values), *values.shape[1:]), values.dtype)])
