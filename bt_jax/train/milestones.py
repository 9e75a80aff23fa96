"""At which steps a run saves, evaluates and ends."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bt_jax.evals.base import Evaluator


class Milestones(NamedTuple):
    """The steps at which a run also logs, saves, evaluates or ends.

    Attributes:
      last: where training ends.
      save_every: steps between checkpoints; 0: only at the end.
      window: window(step) -> steps until metrics are next looked at.
    """

    last: int
    save_every: int
    evaluators: Sequence[Evaluator]
    window: Callable[[int], int]

    def next(self, step: int) -> int:
        """The step to train to from `step`: the end of a window, or the first milestone before it."""
        periods = [self.save_every, *(each.every_steps for each in self.evaluators)]
        return min(step + self.window(step), self.last, *(step + every - step % every for every in periods if every))

    def saves(self, step: int) -> bool:
        """Whether there is a checkpoint of this step."""
        return step == self.last or _is_multiple(step, self.save_every)

    def due(self, step: int) -> list[Evaluator]:
        """The evaluators that run at this step; at the end all that ever run."""
        return [
            each
            for each in self.evaluators
            if each.every_steps and (step == self.last or _is_multiple(step, each.every_steps))
        ]

    def pauses_left(self, step: int) -> dict[str, int]:
        """How often a run at `step`, before its save and its evaluation, will still save and evaluate."""
        periods = [each.every_steps for each in self.evaluators if each.every_steps]
        evaluations = self._multiples_from(step, min(periods)) if periods else 0
        return {"save": self._multiples_from(step, self.save_every), "evaluation": evaluations}

    def _multiples_from(self, step: int, every: int) -> int:
        """Number of multiples of `every` from `step` on that come before the last step, and the last step itself."""
        return ((self.last - 1) // every - (step - 1) // every if every else 0) + 1

    def any(self, step: int) -> bool:
        """Whether the run saves or evaluates at this step."""
        return self.saves(step) or bool(self.due(step))


def _is_multiple(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
