"""The random keys of a run: one for each purpose, derived from the seed alone.

The code that uses a key folds in the step or the epoch, and the id of the image. Therefore no random state is stored,
and the random numbers depend neither on interruptions nor on the number of devices.
"""

import jax

# The purposes, which are folded into the key of the seed.
INIT, ORDER, VIEWS, MONITOR, OBJECTIVE = 0, 1, 2, 3, 4


def stream(seed: int, purpose: int) -> jax.Array:
    """The key of the random stream for one purpose."""
    return jax.random.fold_in(jax.random.key(seed), purpose)
