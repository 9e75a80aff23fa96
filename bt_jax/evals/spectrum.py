"""Metrics of an encoder without labels: rank and spectrum of its features, alignment, uniformity, dead dimensions.

The device sums moments of the features, batch by batch, over two views of every image. The features are the outputs of
the backbone with running statistics. Only (d, d) sums stay in memory.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bt_jax import augment, compilers, sharding
from bt_jax.augment import recipes
from bt_jax.evals import finite
from bt_jax.evals.base import cached_for_last_state
from bt_jax.evals.features import Batch, HasEncoder, HostBatch
from bt_jax.models import Net, Variables
from bt_jax.objectives.functions import unit_rows

EPS = 1e-7  # RankMe (Garrido et al., ICML 2023), equation 1
SLOPE_RANKS = (11, 500)  # the range of the power-law fit: Stringer et al., Nature 2019, figure 2
NAMES = ("rank", "spectrum_slope", "alignment", "uniformity", "dead_dimensions", "off_diagonal")
DEAD = 1e-3  # a dimension with a deviation below this share of the mean deviation is dead


class Moments(NamedTuple):
    """Sums over the views of the images.

    Attributes:
      n: number of views.
      total: sum of the features, (d,).
      products: sum of their outer products, (d, d).
      aligned: sum over images of the squared distance of their two views, of unit features.
      close: sum of exp(-2 squared distance) over pairs of images in a batch, of unit features.
      pairs: number of these pairs.
    """

    n: jax.Array | np.ndarray
    total: jax.Array | np.ndarray
    products: jax.Array | np.ndarray
    aligned: jax.Array | np.ndarray
    close: jax.Array | np.ndarray
    pairs: jax.Array | np.ndarray


Accumulate = Callable[[Moments, jax.Array, Variables, Batch], Moments]
Summary = tuple[dict[str, float], np.ndarray]


def make_accumulate(net: Net, recipe: recipes.Recipe, mesh: Mesh) -> Accumulate:
    """accumulate(moments, key, variables, batch) -> the moments with those of the batch added.

    batch: {"image" uint8 (n, h, w, c), "mask" bool (n,), "id" int32 (n,), optionally "size"}.
    """

    def accumulate(sums: Moments, key: jax.Array, variables: Variables, batch: Batch) -> Moments:
        views = augment.two_views(key, batch["image"], recipe, ids=batch["id"], sizes=batch.get("size"))
        mask = batch["mask"].astype(jnp.float32)
        h = [jnp.where(batch["mask"][:, None], net.apply(variables, view, train=False), 0) for view in views]
        product = sum(jnp.einsum("nd,ne->de", x, x, precision=jax.lax.Precision.HIGHEST) for x in h)
        unit1, unit2 = map(unit_rows, h)
        distance = 2 - 2 * jnp.matmul(unit1, unit1.T, precision=jax.lax.Precision.HIGHEST)
        different = mask[:, None] * mask * (1 - jnp.eye(len(mask)))
        return Moments(
            sums.n + 2 * mask.sum(),
            sums.total + h[0].sum(axis=0) + h[1].sum(axis=0),
            sums.products + product,
            sums.aligned + (jnp.square(unit1 - unit2).sum(axis=1) * mask).sum(),
            sums.close + (jnp.exp(-2 * distance) * different).sum(),
            sums.pairs + different.sum(),
        )

    return compilers.jit(accumulate, donate_argnums=0, out_shardings=sharding.replicated(mesh))


def measure(
    accumulate: Accumulate,
    key: jax.Array,
    variables: Variables,
    batches: Iterable[HostBatch],
    mesh: Mesh,
    features: int,
) -> Summary:
    """Computes `summarise` over padded batches of NumPy arrays, which are the same on every process."""
    shapes = ((), (features,), (features, features), (), (), ())
    sums = sharding.put_replicated(Moments(*(np.zeros(shape, np.float32) for shape in shapes)), mesh)
    first = 0
    for batch in batches:
        ids = np.arange(first, first + len(batch["mask"]), dtype=np.int32)
        first += len(ids)
        inputs = {name: batch[name] for name in ("image", "mask", "size") if name in batch} | {"id": ids}
        sums = accumulate(sums, key, variables, sharding.put_global(inputs, mesh))
    return summarise(jax.device_get(sums))


def summarise(sums: Moments) -> Summary:
    """Computes the metrics from the sums.

    Returns:
      A dict of metrics, and the eigenvalues of the covariance, float32 (d,), descending. All are NaN if the features
      are not finite. The metrics are:

      - rank: the effective rank, 1 ... d (RankMe: the exponential of the entropy of the singular values).
      - spectrum_slope: the power with which the eigenvalues of the covariance fall with their rank. About 1 for good
        features (Agrawal et al., 2022), larger for collapsed ones.
      - alignment: mean squared distance of the unit features of two views, 0 ... 4; less is better (Wang and Isola,
        ICML 2020).
      - uniformity: log of the mean exp(-2 squared distance) of two images. 0 if all features are one point; at best -4
        (Wang and Isola, ICML 2020).
      - dead_dimensions: number of dimensions that do not vary.
      - off_diagonal: mean absolute correlation of two dimensions, 0 ... 1.
    """
    n, total, products = float(sums.n), np.asarray(sums.total, np.float64), np.asarray(sums.products, np.float64)
    if not np.isfinite(products).all():  # NumPy raises an error for their eigenvalues
        return {name: float("nan") for name in NAMES}, np.full(len(total), np.nan, np.float32)
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(products), 0))
    shares = singular / max(singular.sum(), 1e-300) + EPS
    mean = total / n
    covariance = products / n - np.outer(mean, mean)
    eigenvalues = np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0)
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
    alive = deviation > DEAD * deviation.mean()
    correlation = covariance[np.ix_(alive, alive)] / np.outer(deviation[alive], deviation[alive])
    off = np.abs(correlation[~np.eye(len(correlation), dtype=bool)])
    metrics = (
        np.exp(-(shares * np.log(shares)).sum()),
        _slope(eigenvalues),
        float(sums.aligned) / (n / 2),
        np.log(max(float(sums.close) / max(float(sums.pairs), 1.0), 1e-300)),
        (~alive).sum(),
        off.mean() if len(off) else 1.0,
    )
    values: dict[str, float] = dict(zip(NAMES, map(float, metrics), strict=True))
    return values, eigenvalues.astype(np.float32)


def _slope(eigenvalues: np.ndarray) -> float:
    """The power of the eigenvalues: minus the least-squares slope of their log over the log of their rank.

    The fit uses the ranks SLOPE_RANKS. With few eigenvalues, it starts at rank 1.
    """
    first, last = SLOPE_RANKS
    if len(eigenvalues) < 2 * first:
        first = 1
    ranks = np.arange(1, len(eigenvalues) + 1)
    fitted = (ranks >= first) & (ranks <= last) & (eigenvalues > 1e-10 * eigenvalues[0])
    if fitted.sum() < 2:
        return float("inf")
    return float(-np.polyfit(np.log(ranks[fitted]), np.log(eigenvalues[fitted]), 1)[0])


class Spectrum:
    """An evaluator without labels: the metrics of `summarise`.

    Args:
      recipe: of the two views.
      batches: starts a pass over padded batches.
      key: random key of the views.
      every_steps: its schedule; 0 is never.
    """

    title = "spectrum"

    def __init__(
        self,
        net: Net,
        recipe: recipes.Recipe,
        batches: Callable[[], Iterable[HostBatch]],
        *,
        mesh: Mesh,
        key: jax.Array,
        every_steps: int,
    ) -> None:
        self._accumulate = make_accumulate(net, recipe, mesh)
        self._batches, self._mesh, self._key, self._features = batches, mesh, key, net.feature_dim
        self.every_steps = every_steps

    @finite.or_nan(*(f"val/{name}" for name in NAMES))
    def run(self, state: HasEncoder) -> dict[str, float]:
        """{"val/rank": …, …}, with the names of `summarise`."""
        return {f"val/{name}": value for name, value in self.measure(state)[0].items()}

    @cached_for_last_state
    def measure(self, state: HasEncoder) -> Summary:
        """The metrics and the eigenvalues of the encoder of a state.

        Raises:
          NotFiniteError: some features are not finite.
        """
        values, eigenvalues = measure(
            self._accumulate, self._key, state.encoder(), self._batches(), self._mesh, self._features
        )
        if not np.isfinite(eigenvalues).all():
            raise finite.NotFiniteError("The features for the spectrum are not finite")
        return values, eigenvalues
