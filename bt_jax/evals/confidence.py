"""How far an accuracy may be from that of another test set of the same kind."""

import numpy as np

from bt_jax.shapes import Bool


def interval(right: Bool[np.ndarray, " n"], *, level: float = 0.95) -> tuple[float, float]:
    """Quantiles of Binomial(n, p) / n, p the share that is right: where a bootstrap over the images tends to.

    Args:
      right: bool (n,), which test images are classified rightly.

    Returns:
      Ends of the interval, fractions.
    """
    from scipy.stats import binom  # takes half a second, which no start of a run should wait for

    right = np.asarray(right, bool)
    low, high = binom.interval(level, len(right), right.mean())
    return float(low / len(right)), float(high / len(right))
