"""Training with labels: a linear classifier on the backbone, by cross-entropy.

Fine-tuning and linear evaluation train it on an encoder of a checkpoint; as a method of pretraining it is the
supervised baseline.
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
    """Mean cross-entropy in nats, and "top1", the share of correct predictions; images of label -1 do not count."""
    return functions.cross_entropy(logits, labels), {"top1": functions.top1(logits, labels)}


@dataclasses.dataclass(frozen=True)
class Supervised(Objective):
    """A classifier on the first view.

    Attributes:
      batch_statistics: batch norm uses the statistics of the batch; False: the running ones, which stay as they are.
      classes: number of classes, which the trainer takes from the data set.
    """

    batch_statistics: bool = True
    classes: int = 0

    title: ClassVar = "supervised"
    metrics: ClassVar = {
        "top1": Metric("Accuracy on training batches", "Far above held-out images: the network overfits.", term=True)
    }

    def heads(self, model, feature_dim):
        """The classifier.

        Raises:
          UserError: the data set has no classes.
        """
        from bt_jax import models

        if self.classes < 1:
            raise UserError(
                "The objective supervised needs labels, and the training images have none",
                "Name a labelled data set, or set another config.objective.",
            )
        return {"classifier": models.build_classifier(feature_dim, self.classes)}

    def loss(self, run: Forward, views: Sequence[jax.Array], memory: Tree, context: Context) -> Outcome:
        """`supervised` of the classifier's logits."""
        assert context.labels is not None, "a data set with classes has labels"
        h = run("backbone", views[:1], train=self.batch_statistics)
        (logits,) = run("classifier", h)
        loss, metrics = supervised(logits, context.labels)
        return Outcome(loss, h, metrics)
