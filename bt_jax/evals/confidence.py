"""The uncertainty of an accuracy from the random choice of its test images."""

import numpy as np

from bt_jax.shapes import Bool


def interval(correct: Bool[np.ndarray, " n"], *, level: float = 0.95) -> tuple[float, float]:
    """The confidence interval of an accuracy: quantiles of Binomial(n, p) / n, with the accuracy p.

    A bootstrap over the images converges to these quantiles.

    Args:
      correct: bool (n,), whether each test image is classified correctly.

    Returns:
      The ends of the interval, fractions.
    """
    from scipy.stats import binom  # the import takes half a second: a run should not wait for it at its start

    correct = np.asarray(correct, bool)
    low, high = binom.interval(level, len(correct), correct.mean())
    return float(low / len(correct)), float(high / len(correct))
