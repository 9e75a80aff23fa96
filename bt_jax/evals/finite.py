"""Features that are not finite are no result: an evaluation fails, and training continues without the number."""

import functools
import math
from collections.abc import Callable

import numpy as np

from bt_jax import messages
from bt_jax.messages import UserError


class NotFiniteError(UserError):
    """Features hold NaN or infinity, of which every protocol would make a number that looks like chance."""

    def __init__(self, cause: str):
        super().__init__(cause, "Take an earlier checkpoint, or an encoder whose training did not diverge.")


def require(features: np.ndarray, of: str = "") -> None:
    """Raises NotFiniteError, with the number of rows of float (n, d) that are not finite, where there are some.

    Args:
      of: a split, for the message.
    """
    broken = int((~np.isfinite(features).all(axis=1)).sum())
    if broken:
        where = f" of {of}" if of else ""
        raise NotFiniteError(f"The features of {broken} of the {len(features)} images{where} are not finite")


def or_nan(*names: str) -> Callable[[Callable], Callable]:
    """Decorates `run` of an evaluator: with a schedule, that is while something trains, NotFiniteError is a warning.

    Args:
      names: the values that are then NaN.
    """

    def decorate(run):
        @functools.wraps(run)
        def guarded(self, state):
            try:
                return run(self, state)
            except NotFiniteError as error:
                if not self.every_steps:
                    raise
                messages.say(f"WARNING: {error.cause}: no {', '.join(names)} of this step")
                return dict.fromkeys(names, math.nan)

        return guarded

    return decorate
