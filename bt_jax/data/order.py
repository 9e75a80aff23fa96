"""The order of the training images: one permutation per epoch, a function of seed and epoch alone.

`epoch_order` is for a data set on the device, `permutation` for a stream from the host. Neither may change: a resumed
run needs the order that it started with.
"""

from functools import partial

import jax
import numpy as np


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """int64 (count,): the order of an epoch, from the raw bits of Philox, which NumPy promises never to change."""
    bits = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(count)
    return np.argsort(bits, kind="stable")


@partial(jax.jit, static_argnames="n")
def epoch_order(key: jax.Array, epoch: int, n: int) -> jax.Array:
    """int32 (n,): the permutation of 0..n-1 in which an epoch visits the images, a function of (key, epoch) alone."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), n)
