"""A data set that is kept whole on the device. One dispatch shuffles, gathers, makes views and takes several steps."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from bt_jax import compilers, randomness, sharding
from bt_jax.config.sections import Run
from bt_jax.data.batches import Batches, Step
from bt_jax.data.order import epoch_order
from bt_jax.data.sources.base import Source, evenly_spaced
from bt_jax.data.sources.broken import UnreadableImages
from bt_jax.state import TrainState


class ResidentFeed:
    """A data set whose arrays are kept on the devices as uint8."""

    def __init__(
        self, settings: Run, source: Source, mesh: Mesh, broken: UnreadableImages, channels: int, train_split: str
    ) -> None:
        self._settings, self._source, self._mesh, self._split = settings, source, mesh, train_split
        self._arrays = functools.cache(lambda split: source.arrays(split, broken, channels=channels))
        self.images = len(self._arrays(train_split).images)
        self._steps_per_epoch = max(self.images // settings.batch_size, 1)
        self._size = dispatch_size(self._steps_per_epoch, settings.log.every_steps)

    def batches(self, step: Step, state: TrainState) -> Batches:
        """See `Feed`."""
        data = put_arrays(*self._arrays(self._split), self._mesh)
        first_id = self._source.span(self._split).start
        # XLA's CPU backend runs convolutions four times slower inside a loop, so on a CPU a dispatch is one step.
        size = 1 if jax.default_backend() == "cpu" else self._size
        return ResidentBatches(self._settings, self._mesh, step, state, data, first_id=first_id, size=size)

    def window(self, at_step: int) -> int:
        """See `Feed`. The window reaches to the end of a dispatch; no dispatch crosses the end of an epoch."""
        within = at_step % self._steps_per_epoch
        return min(self._size - within % self._size, self._steps_per_epoch - within)

    def sample(self, n: int) -> dict[str, np.ndarray]:
        """See `Feed`."""
        keep = evenly_spaced(self.images, n)
        return {"image": self._arrays(self._split).images[keep], "id": keep.astype(np.int32)}

    def passes(self, split: str, limit: int) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
        """See `Feed`."""
        keep = evenly_spaced(len(self._arrays(split).images), limit)
        chosen = [None if a is None else a[keep] for a in self._arrays(split)]
        batch_size = sharding.round_up(self._settings.evals.batch_size, self._mesh)
        return lambda: eval_batches(*chosen, batch_size=batch_size)


class ResidentBatches(Batches):
    """Dispatches of up to `size` steps, which select their batches on the device."""

    def __init__(
        self, settings: Run, mesh: Mesh, step: Step, state: TrainState, data: dict, *, first_id: int, size: int
    ) -> None:
        super().__init__(int(state.step))
        images = len(data["image"])
        self._data, self._size, self._steps_per_epoch = data, size, max(images // settings.batch_size, 1)
        layout = jax.tree.map(lambda leaf: leaf.sharding, state)
        self._run = make_dispatch(step, batch_size=settings.batch_size, mesh=mesh, first_id=first_id, layout=layout)
        # The devices make the key, because a process cannot put it onto the devices of other processes.
        make_key = compilers.jit(
            lambda: randomness.stream(settings.seed, randomness.ORDER), out_shardings=sharding.replicated(mesh)
        )
        self._key = make_key()
        # The epoch comes from the step on the device: a number from the host would be a transfer.
        self._order_of = compilers.jit(lambda key, step: epoch_order(key, step // self._steps_per_epoch, images))
        self._epoch, self._order = -1, None

    def dispatch(self, state: TrainState, most: int) -> tuple[TrainState, dict[str, jax.Array], int]:
        """See `Batches`."""
        if self._at // self._steps_per_epoch != self._epoch:
            self._epoch = self._at // self._steps_per_epoch
            self._order = self._order_of(self._key, state.step)
        steps = min(most, self._size)
        state, metrics = self._run(state, self._data, self._order, steps=steps)
        return state, metrics, steps


def put_arrays(images: np.ndarray, labels: np.ndarray | None, mesh: Mesh) -> dict[str, jax.Array]:
    """{"image": uint8 (n, h, w, c), "label": int32 (n,)} with a copy on every device; no "label" if labels is None."""
    data = {"image": images} | ({} if labels is None else {"label": labels.astype(np.int32)})
    return sharding.put_replicated(data, mesh)


def make_dispatch(step: Callable, *, batch_size: int, mesh: Mesh, first_id: int = 0, layout=None) -> Callable:
    """Builds run(state, data, order, *, steps) -> (state, metrics): `steps` training steps within one epoch.

    An epoch is n // batch_size steps. The rest of the permutation is dropped, as in the reference (drop_last).

    Args:
      first_id: id of the first image, if the data is a slice of a larger split.
      layout: shardings of the state, a pytree of its structure; None: a copy on every device.

    Returns:
      run, jitted, which donates its state. order: `epoch_order` of the state's epoch. metrics: every metric of the
      steps, stacked to (steps,).
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
    """Number of steps per dispatch: at most `limit`, with equal dispatches in an epoch if that costs little.

    Every size is a program to compile. The size is the largest divisor of the epoch, unless that is under half the
    limit. In that case all dispatches of an epoch but the last have one size.
    """
    limit = min(limit, steps_per_epoch)
    divisor = max(size for size in range(1, limit + 1) if steps_per_epoch % size == 0)
    parts = -(-steps_per_epoch // limit)
    return divisor if 2 * divisor >= limit else -(-steps_per_epoch // parts)


def eval_batches(images: np.ndarray, labels: np.ndarray | None, *, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields all images in order, {"image", "label", "mask"}; the last batch is padded, with mask False."""
    for start in range(0, len(images), batch_size):
        rows = {"image": images[start : start + batch_size]}
        if labels is not None:
            rows["label"] = labels[start : start + batch_size].astype(np.int32)
        count = len(rows["image"])
        padded = {name: _pad(values, batch_size) for name, values in rows.items()}
        readable = padded["label"] >= 0 if labels is not None else True  # unreadable images have no label
        yield padded | {"mask": (np.arange(batch_size) < count) & readable}


def _pad(values: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([values, np.zeros((rows - len(values), *values.shape[1:]), values.dtype)])
