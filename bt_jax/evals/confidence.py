"""How far an accuracy may be from that of another test set of the same kind: a bootstrap interval."""

import numpy as np

from bt_jax.shapes import Bool

RESAMPLES = 10_000


def interval(
    right: Bool[np.ndarray, " n"], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap over the test images (Efron and Tibshirani, 1993, chapter 13).

    Drawing n images anew from n of which a share p is right gives Binomial(n, p) right ones, so that is what is drawn.

    Args:
      right: bool (n,), which test images are classified rightly.

    Returns:
      Ends of the interval, fractions.
    """
    right = np.asarray(right, bool)
    draws = np.random.default_rng(seed).binomial(len(right), right.mean(), resamples) / len(right)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
