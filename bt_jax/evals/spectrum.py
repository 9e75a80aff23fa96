"""What can be said of an encoder without labels: rank and spectrum of its features, alignment, uniformity, collapse.

All numbers come from moments that are summed on the device, batch by batch, over two views of every image; features
are the backbone's, by running statistics. Nothing is kept but (d, d) sums.
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
from bt_jax.evals.features import Batch, Encoded, HostBatch
from bt_jax.models import Net, Variables
from bt_jax.objectives.functions import unit_rows

EPS = 1e-7  # RankMe (Garrido et al., ICML 2023), equation 1
SLOPE_RANKS = (11, 500)  # between which the power law is fitted: Stringer et al., Nature 2019, figure 2
NAMES = ("rank", "spectrum_slope", "alignment", "uniformity", "dead_dimensions", "off_diagonal")
DEAD = 1e-3  # a dimension whose deviation is below this share of the mean deviation carries nothing


class Moments(NamedTuple):
    """Sums over views. n: how many; total (d,); products (d, d); aligned: squared distances of the two views of an
    image; close: exp(-2 squared distance) over `pairs` pairs of images of a batch; the last three of unit features."""

    n: jax.Array | np.ndarray
    total: jax.Array | np.ndarray
    products: jax.Array | np.ndarray
    aligned: jax.Array | np.ndarray
    close: jax.Array | np.ndarray
    pairs: jax.Array | np.ndarray


Accumulate = Callable[[Moments, jax.Array, Variables, Batch], Moments]
Summary = tuple[dict[str, float], np.ndarray]


def make_accumulate(net: Net, recipe: recipes.Recipe, mesh: Mesh) -> Accumulate:
    """accumulate(moments, key, variables, batch) -> moments with the batch's added.

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
    """The numbers of `summarise` over padded batches of numpy arrays, the same on every process."""
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
    """From the sums to numbers.

    Returns:
      {"rank": effective rank of the features, 1 ... d (RankMe: the exponential of the entropy of their singular
      values), "spectrum_slope": the power with which the covariance's eigenvalues fall with their rank, about 1 for
      good features (Agrawal et al., 2022), steeper where they collapse, "alignment": mean squared distance of the unit
      features of two views, 0 ... 4, less is better, "uniformity": log of the mean exp(-2 squared distance) of two
      images, 0 where all are one point, -4 at best (both: Wang and Isola, ICML 2020), "dead_dimensions": how many do
      not vary, "off_diagonal": mean absolute correlation of two dimensions, 0 ... 1}, and the eigenvalues of the
      covariance, float32 (d,), descending. All NaN where the features are not finite.
    """
    n, total, products = float(sums.n), np.asarray(sums.total, np.float64), np.asarray(sums.products, np.float64)
    if not np.isfinite(products).all():  # of which there are no eigenvalues
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
    shown = (
        np.exp(-(shares * np.log(shares)).sum()),
        _slope(eigenvalues),
        float(sums.aligned) / (n / 2),
        np.log(max(float(sums.close) / max(float(sums.pairs), 1.0), 1e-300)),
        (~alive).sum(),
        off.mean() if len(off) else 1.0,
    )
    values: dict[str, float] = dict(zip(NAMES, map(float, shown), strict=True))
    return values, eigenvalues.astype(np.float32)


def _slope(eigenvalues: np.ndarray) -> float:
    """Minus the slope of log eigenvalue over log rank, least squares; of all ranks where there are few."""
    first, last = SLOPE_RANKS
    if len(eigenvalues) < 2 * first:
        first = 1
    ranks = np.arange(1, len(eigenvalues) + 1)
    kept = (ranks >= first) & (ranks <= last) & (eigenvalues > 1e-10 * eigenvalues[0])
    if kept.sum() < 2:
        return float("inf")
    return float(-np.polyfit(np.log(ranks[kept]), np.log(eigenvalues[kept]), 1)[0])


class Spectrum:
    """An evaluator without labels: see `summarise`; every so many steps.

    Args:
      batches: starts a pass over padded batches.
      every_steps: its schedule; 0 is never.
    """

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
    def run(self, state: Encoded) -> dict[str, float]:
        """{"val/rank": …, …}, under the names of `summarise`."""
        return {f"val/{name}": value for name, value in self.of(state)[0].items()}

    @cached_for_last_state
    def of(self, state: Encoded) -> Summary:
        """The numbers and the eigenvalues for a state's encoder.

        Raises:
          NotFiniteError: features are not finite.
        """
        found = measure(self._accumulate, self._key, state.encoder(), self._batches(), self._mesh, self._features)
        if not np.isfinite(found[1]).all():
            raise finite.NotFiniteError("The features from which the spectrum is computed are not finite")
        return found
