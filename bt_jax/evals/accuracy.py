"""The accuracy on held-out images of a classifier that is trained with its encoder."""

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from bt_jax import compilers, sharding
from bt_jax.augment import recipes
from bt_jax.evals import features, finite
from bt_jax.evals.base import cached_for_last_state
from bt_jax.state import Nets, TrainState


class Accuracy:
    """An evaluator: top-1 and top-5 accuracy of a classifier on held-out images.

    Args:
      nets: the backbone, and a head called "classifier".
      val: starts a pass over padded batches with labels.
      resize: see `augment.evaluation_view`.
      every_steps: its schedule; 0 is never.
    """

    title = "accuracy"

    def __init__(self, nets: Nets, recipe: recipes.Recipe, val: Callable, *, mesh: Mesh, resize: int, every_steps: int):
        embed, classifier = features.make_embed(nets.backbone, recipe, mesh, resize=resize), nets.heads["classifier"]

        def logits(variables, batch):
            return classifier.apply(variables["classifier"], embed(variables["backbone"], batch), train=False)

        self._logits, self._val, self._mesh = compilers.jit(logits, out_shardings=sharding.replicated(mesh)), val, mesh
        self.every_steps = every_steps

    @cached_for_last_state
    def logits(self, state: TrainState) -> tuple[np.ndarray, np.ndarray]:
        """Logits float32 (n, classes) and labels int32 (n,) of the held-out images."""
        variables = {name: state.network(name) for name in ("backbone", "classifier")}
        logits, labels = features.extract(self._logits, variables, self._val(), self._mesh, of="the held-out split")
        assert labels is not None  # the images of `val` have labels
        return logits, labels

    @finite.or_nan("val/top1")
    def run(self, state: TrainState) -> dict[str, float]:
        """{"val/top1", "val/top5"}, the values of `accuracies`."""
        return {f"val/{name}": value for name, value in accuracies(*self.logits(state)).items()}


def accuracies(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{"top1", "top5"} of logits float (n, classes), fractions of the rows whose label is not -1.

    There is no "top5" for five or fewer classes.
    """
    logits, labels = logits[labels >= 0], labels[labels >= 0]
    rank = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(axis=1)
    values = {"top1": float((rank == 0).mean())}
    return values if logits.shape[1] <= 5 else values | {"top5": float((rank < 5).mean())}
