"""The order of the training images: one permutation an epoch, by the seed and the epoch alone.

There are two, and both stay, so that runs that began with them can resume: `epoch_order` where the data set is on the
device, `permutation` where it is streamed from the host.
"""

from functools import partial

import jax
import numpy as np


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """int64 (count,): the order of an epoch. From the raw bits of Philox, which NumPy promises never to change."""
    bits = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(count)
    return np.argsort(bits, kind="stable")


@partial(jax.jit, static_argnames="n")
def epoch_order(key: jax.Array, epoch: int, n: int) -> jax.Array:
    """The permutation of 0..n-1 in which an epoch visits the images, int32 (n,): a function of (key, epoch) alone."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), n)
