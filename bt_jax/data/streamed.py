"""A streamed data set: the host decodes it, by tf.data or by Pillow, while the devices train."""

import collections
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from bt_jax import compilers, sharding
from bt_jax.config.sections import Run
from bt_jax.data import pillow_stream, pipeline
from bt_jax.data.batches import Batches, Step
from bt_jax.data.prefetch import Prefetch
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.broken import UnreadableImages
from bt_jax.state import TrainState


class StreamedFeed:
    """A feed that decodes images when they are needed."""

    def __init__(
        self,
        settings: Run,
        source: Source,
        mesh: Mesh,
        broken: UnreadableImages,
        channels: int,
        train_split: str,
        *,
        reader: str = "tensorflow",
    ) -> None:
        self._settings, self._source, self._mesh, self._split = settings, source, mesh, train_split
        self._reader = {"tensorflow": pipeline, "pillow": pillow_stream}[reader]
        self._decoding = {"canvas": settings.data.canvas, "channels": channels, "broken": broken}
        span = source.span(train_split)
        self.images, self._labelled = span.stop - span.start, source.labelled(span.base)

    def batches(self, step: Step, state: TrainState) -> Batches:
        """See `Feed`."""
        settings = self._settings
        made = self._reader.train_batches(
            self._source,
            self._split,
            batch_size=settings.batch_size,
            seed=settings.seed,
            start_step=int(state.step),
            shuffle_buffer=settings.data.shuffle_buffer or None,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            **self._decoding,
        )
        return StreamedBatches(made, self._mesh, step, state, labelled=self._labelled)

    def window(self, at_step: int) -> int:
        """See `Feed`. The window reaches to the next line of the log."""
        every = self._settings.log.every_steps
        return every - at_step % every

    def sample(self, n: int) -> dict[str, np.ndarray]:
        """See `Feed`."""
        batch = next(iter(self._pass(self._split, batch_size=n)))
        return {name: batch[name][batch["mask"]] for name in ("image", "size", "id") if name in batch}

    def passes(self, split: str, limit: int) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
        """See `Feed`."""
        batch_size = sharding.round_up(self._settings.evals.batch_size, self._mesh)
        return lambda: self._pass(split, batch_size=batch_size, limit=limit)

    def _pass(self, split: str, **options: int) -> Iterator[dict[str, np.ndarray]]:
        return self._reader.eval_batches(self._source, split, **options, **self._decoding)


class StreamedBatches(Batches):
    """One step per dispatch, on batches that a thread prepares ahead."""

    AHEAD = 2  # steps that may be queued on the device; each occupies memory for its batch

    def __init__(self, made: Iterator, mesh: Mesh, step: Step, state: TrainState, *, labelled: bool) -> None:
        super().__init__(int(state.step))
        self._ahead = Prefetch(made, lambda batch: sharding.put_batch(batch, mesh))
        layout = jax.tree.map(lambda leaf: leaf.sharding, state)
        self._step = compilers.jit(step, donate_argnums=0, out_shardings=(layout, sharding.replicated(mesh)))
        self._labelled, self._queued = labelled, collections.deque()

    @property
    def wait_seconds(self) -> float:
        """Time spent waiting for batches."""
        return self._ahead.wait_seconds

    def dispatch(self, state: TrainState, most: int) -> tuple[TrainState, dict[str, jax.Array], int]:
        """See `Batches`."""
        batch = next(self._ahead)
        if not self._labelled:
            batch = {name: values for name, values in batch.items() if name != "label"}
        state, metrics = self._step(state, batch)
        self._queued.append(metrics)
        if len(self._queued) > self.AHEAD:
            jax.block_until_ready(self._queued.popleft())
        return state, metrics, 1

    def close(self) -> None:
        """Stops the thread."""
        self._ahead.close()
