"""Training with labels: a linear classifier on the backbone, with the cross-entropy.

Fine-tuning and linear evaluation use it on the encoder of a checkpoint. In pretraining, it is the supervised baseline.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax

from bt_jax.messages import UserError
from bt_jax.objectives import functions
from bt_jax.objectives.base import Context, Metric, Objective, Outcome
from bt_jax.objectives.forward import Forward, Tree
from bt_jax.shapes import Array, Float, Int


def supervised(
    logits: Float[Array, "n classes"], labels: Int[Array, " n"]
) -> tuple[Float[jax.Array, ""], dict[str, Float[jax.Array, ""]]]:
    """The mean cross-entropy in nats.

    Args:
      logits: the classifier's outputs (n, classes), float.
      labels: int (n,); images with label -1 do not count.

    Returns:
      The loss, and "top1", the share of correct predictions.

    Raises:
      UserError: the logits are not as above.
    """
    functions.check_embeddings(1, logits=logits)
    return functions.cross_entropy(logits, labels), {"top1": functions.top1(logits, labels)}


@dataclasses.dataclass(frozen=True)
class Supervised(Objective):
    """A classifier on the first view.

    Attributes:
      batch_statistics: batch norm uses the statistics of the batch. Otherwise it uses the running ones, which then do
        not change.
      classes: number of classes, which the trainer sets to that of the data set.
    """

    batch_statistics: bool = True
    classes: int = 0

    title: ClassVar = "supervised"
    metrics: ClassVar = {
        "top1": Metric(
            "Accuracy on training batches",
            "If it is far above the accuracy on held-out images, the network overfits.",
            term=True,
        )
    }

    def heads(self, model, feature_dim):
        """The classifier.

        Raises:
          UserError: the data set has no classes.
        """
        from bt_jax import models

        if self.classes < 1:
            raise UserError(
                "The objective supervised needs labels, but the training images have none",
                "Name a labelled data set, or set another config.objective.",
            )
        return {"classifier": models.build_classifier(feature_dim, self.classes)}

    def loss(self, run: Forward, views: Sequence[jax.Array], memory: Tree, context: Context) -> Outcome:
        """The function `supervised` of the logits."""
        assert context.labels is not None, "a data set with classes has labels"
        h = run("backbone", views[:1], train=self.batch_statistics)
        (logits,) = run("classifier", h)
        loss, metrics = supervised(logits, context.labels)
        return Outcome(loss, h, metrics)
