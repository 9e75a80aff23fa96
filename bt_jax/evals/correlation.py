"""The cross-correlation matrix c of a batch of training images, recorded during training."""

import io
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax import augment, compilers, storage
from bt_jax.augment import recipes
from bt_jax.data.sources.base import evenly_spaced
from bt_jax.objectives import barlow_twins
from bt_jax.shapes import Float
from bt_jax.state import Nets, TrainState

HEAT_MAP_ROWS = 128  # rows and columns of a heat map: a screen displays no more
MAX_ROWS = 8192  # rows and columns of the matrix at the end: 268 MB


class CrossCorrelation:
    """An evaluator that writes a heat map of c to the run folder.

    Args:
      batch: {"image" uint8 (n, h, w, c), "id", optionally "size"}. As in training, c uses the batch statistics of the
        networks on these images.
      key: random key of the views.
      folder: for the files STEP.npy, float16 (HEAT_MAP_ROWS, HEAT_MAP_ROWS); None writes no files.
      every_steps: its schedule; 0 is never.
    """

    title = "cross-correlation"

    def __init__(
        self,
        nets: Nets,
        recipe: recipes.Recipe,
        batch: Mapping[str, jax.Array | np.ndarray],
        *,
        key: jax.Array,
        folder: storage.AnyPath | None,
        every_steps: int,
    ) -> None:
        self._batch, self._key, self._folder = batch, key, folder
        self.every_steps = every_steps

        def embeddings(state: TrainState, key: jax.Array, batch: Mapping[str, jax.Array]) -> list[jax.Array]:
            z = []
            for view in augment.two_views(key, batch["image"], recipe, ids=batch["id"], sizes=batch.get("size")):
                h, _ = nets.backbone.apply(state.encoder(), view, train=True)
                z.append(nets.heads["projector"].apply(state.network("projector"), h, train=True)[0])
            return z

        self._embeddings = compilers.jit(embeddings)

    def run(self, state: TrainState) -> dict[str, float]:
        """Writes the heat map; returns no metric."""
        if self._folder is not None:
            storage.make(self._folder)
            c = self.matrix(state, HEAT_MAP_ROWS).astype(np.float16)
            storage.write(self._folder / f"{int(state.step)}.npy", lambda file: np.save(file, c))
        return {}

    def matrix(self, state: TrainState, limit: int = MAX_ROWS) -> np.ndarray:
        """c of at most `limit` evenly spaced dimensions, float32 (m, m)."""
        z1, z2 = self._embeddings(state, self._key, self._batch)
        keep = evenly_spaced(z1.shape[1], limit)
        return np.asarray(jnp.asarray(barlow_twins.cross_correlation(z1[:, keep], z2[:, keep]), jnp.float32))

    def history(self) -> dict[str, np.ndarray]:
        """The heat maps written so far: {"c_steps": int64 (t,), "c_over_time": float16 (t, m, m)}, or {} for none."""
        files = sorted(self._folder.glob("*.npy"), key=lambda file: int(file.stem)) if self._folder else []
        if not files:
            return {}
        steps = np.array([int(file.stem) for file in files], np.int64)
        return {"c_steps": steps, "c_over_time": np.stack([_array(file) for file in files])}


def _array(file: storage.AnyPath) -> np.ndarray:
    return np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)


def for_heat_map(c: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "m m"]:
    """At most HEAT_MAP_ROWS evenly spaced rows and columns of a (d, d) matrix."""
    rows = evenly_spaced(len(c), HEAT_MAP_ROWS)
    return c[np.ix_(rows, rows)]
