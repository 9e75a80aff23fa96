"""All randomness of a run: one key for each purpose, made of the seed alone.

The user of a key folds in the step or the epoch, and the id of the image. So nothing random is stored, a resumed run
draws what it would have drawn, and the number of devices changes no draw.
"""

import jax

# Streams of a run's randomness, folded into the seed's key.
INIT, ORDER, VIEWS, MONITOR, OBJECTIVE = 0, 1, 2, 3, 4


def stream(seed: int, purpose: int) -> jax.Array:
    """The key of one of the streams above."""
    return jax.random.fold_in(jax.random.key(seed), purpose)
