"""The cross-correlation matrix of some training images, looked at while it becomes the identity."""

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

PICTURE = 128  # rows and columns of a heat map: a screen shows no more
MOST = 8192  # rows and columns at the end: 268 MB


class CrossCorrelation:
    """Keeps a heat map of c in the run folder every so many steps.

    Args:
      batch: {"image" uint8 (n, h, w, c), "id", optionally "size"}: the images, by the networks' statistics of which c
        is computed, as in training.
      folder: where STEP.npy is written, float16 (PICTURE, PICTURE); None: nowhere.
      every_steps: its schedule; 0 is never.
    """

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
        """Writes the picture; has no number to tell."""
        if self._folder is not None:
            storage.make(self._folder)
            c = self.of(state, PICTURE).astype(np.float16)
            storage.write(self._folder / f"{int(state.step)}.npy", lambda file: np.save(file, c))
        return {}

    def of(self, state: TrainState, limit: int = MOST) -> np.ndarray:
        """c of at most `limit` evenly spaced dimensions, float32 (m, m)."""
        z1, z2 = self._embeddings(state, self._key, self._batch)
        keep = evenly_spaced(z1.shape[1], limit)
        return np.asarray(jnp.asarray(barlow_twins.cross_correlation(z1[:, keep], z2[:, keep]), jnp.float32))

    def history(self) -> dict[str, np.ndarray]:
        """{"c_steps": int64 (t,), "c_over_time": float16 (t, m, m)} of the pictures written so far; empty without."""
        files = sorted(self._folder.glob("*.npy"), key=lambda file: int(file.stem)) if self._folder else []
        if not files:
            return {}
        steps = np.array([int(file.stem) for file in files], np.int64)
        return {"c_steps": steps, "c_over_time": np.stack([_array(file) for file in files])}


def _array(file: storage.AnyPath) -> np.ndarray:
    return np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)


def picture(c: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "m m"]:
    """At most PICTURE evenly spaced rows and columns of a (d, d) matrix, for a heat map."""
    keep = evenly_spaced(len(c), PICTURE)
    return c[np.ix_(keep, keep)]
