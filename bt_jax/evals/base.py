"""The interface of evaluators: a schedule, and metrics of a training state."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

from bt_jax.state import TrainState


class Evaluator(Protocol):
    """Computes metrics of a state, during training or after it.

    Attributes:
      title: what it evaluates, in words for messages.
      every_steps: its schedule; 0 is never.
    """

    title: str
    every_steps: int

    def run(self, state: TrainState) -> dict[str, float]:
        """{name: value}, with the names of metrics.jsonl."""
        ...


def cached_for_last_state(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Decorates method(self, state) to cache the result of its last call, for calls with the same state.

    A call with another state drops the last result before it computes the next, so that only one is in memory.
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
