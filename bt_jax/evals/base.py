"""What an evaluator is: a schedule, and metrics computed from a state."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

from bt_jax.state import TrainState


class Evaluator(Protocol):
    """Measures a training state, during training or on its own.

    Attributes:
      every_steps: its schedule; 0 is never.
    """

    every_steps: int

    def run(self, state: TrainState) -> dict[str, float]:
        """Name -> value, as they stand in metrics.jsonl."""
        ...


def cached_for_last_state(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Decorates method(self, state) to compute its result once for the state that it was last called with.

    The last result is dropped before the next is computed: both need not fit in memory.
    """
    slot = f"_{method.__name__}_of_last_state"

    @functools.wraps(method)
    def cached(self: Any, state: Any) -> Any:
        last = self.__dict__.get(slot)
        if last is None or last[0] is not state:
            self.__dict__.pop(slot, None)
            del last
            last = self.__dict__[slot] = (state, method(self, state))
        return last[1]

    return cached
