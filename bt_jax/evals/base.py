"""What an evaluator is: a schedule, and numbers computed from a state."""

from typing import Protocol

from bt_jax.state import TrainState


class Evaluator(Protocol):
    """What looks at the state while it trains, and by itself afterwards.

    Attributes:
      every_steps: its schedule; 0 is never.
    """

    every_steps: int

    def run(self, state: TrainState) -> dict[str, float]:
        """Name -> value, as they stand in metrics.jsonl."""
        ...
