"""Checks that features are finite. If they are not, an evaluation fails, and training continues with a warning."""

import functools
import math
from collections.abc import Callable

import numpy as np

from bt_jax import messages
from bt_jax.messages import UserError


class NotFiniteError(UserError):
    """Some features are NaN or infinite. Every protocol would compute an accuracy near chance from them."""

    def __init__(self, cause: str):
        super().__init__(cause, "Use an earlier checkpoint, or an encoder whose training did not diverge.")


def require(features: np.ndarray, of: str = "") -> None:
    """Raises NotFiniteError, with their number, if some rows of float (n, d) are not finite.

    Args:
      of: name of the split, for the message.
    """
    non_finite = int((~np.isfinite(features).all(axis=1)).sum())
    if non_finite:
        split = f" of {of}" if of else ""
        raise NotFiniteError(f"The features of {non_finite} of the {len(features)} images{split} are not finite")


def or_nan(*names: str) -> Callable[[Callable], Callable]:
    """Decorates `run` of an evaluator: during training, it prints a warning instead of raising NotFiniteError.

    An evaluator with a schedule runs during training.

    Args:
      names: of the metrics, which are then NaN.
    """

    def decorate(run):
        @functools.wraps(run)
        def guarded(self, state):
            try:
                return run(self, state)
            except NotFiniteError as error:
                if not self.every_steps:
                    raise
                messages.say(f"WARNING: {error.cause}. This step has no {', '.join(names)}.")
                return dict.fromkeys(names, math.nan)

        return guarded

    return decorate
