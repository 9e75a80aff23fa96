"""The protocols on frozen features, as evaluators: nearest neighbours, linear probes and SVMs.

Training images are the neighbours, or train the classifiers. Held-out images are classified. All protocols that share a
`FrozenFeatures` extract the features once.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from bt_jax import messages
from bt_jax.evals import confidence, features, finite, knn, probe, svm
from bt_jax.evals.base import cached_for_last_state
from bt_jax.evals.features import HasEncoder
from bt_jax.messages import UserError
from bt_jax.state import TrainState

Batches = Callable[[], Iterable[features.HostBatch]]
Splits = tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray | None]
LabelledSplits = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class FrozenFeatures:
    """The features of training and held-out images by the encoder of a state, cached for the last state.

    Args:
      embed: as of `features.make_embed`.
      train, val: functions that start a pass over padded batches.
      num_classes: number of classes; 0 if labels are not used.
      names: of the two splits, for messages.
      check: raise an error if a class of the held-out images has no training image. Otherwise print a warning, because
        a sample of the training images may lack a class.
    """

    def __init__(
        self,
        embed: features.Embed,
        train: Batches,
        val: Batches,
        *,
        mesh: Mesh,
        num_classes: int,
        names: Sequence[str] = ("the training split", "the held-out split"),
        check: bool = False,
    ) -> None:
        self.num_classes, self._names, self._check = num_classes, names, check
        self._embed, self._passes, self._mesh = embed, (train, val), mesh
        self._warned = False

    def with_embed(self, embed: features.Embed) -> "FrozenFeatures":
        """Features of the same images by another embed function."""
        shared = {"mesh": self._mesh, "num_classes": self.num_classes, "names": self._names, "check": self._check}
        other = FrozenFeatures(embed, *self._passes, **shared)
        other._warned = self._warned
        return other

    @cached_for_last_state
    def for_state(self, state: HasEncoder) -> Splits:
        """(training features (m, d), labels (m,), held-out features (n, d), labels (n,)); labels may be None.

        Raises:
          NotFiniteError: some features are not finite.
          UserError: with `check`, a class of the held-out images has no training image.
        """
        train, val = (
            features.extract(self._embed, state.encoder(), start(), self._mesh, of=name)
            for start, name in zip(self._passes, self._names, strict=True)
        )
        splits = (*train, *val)
        if self.num_classes:
            _, labels, _, val_labels = _labelled(splits)
            self._compare_labels(labels, val_labels)
        return splits

    def _compare_labels(self, train: np.ndarray, val: np.ndarray) -> None:
        """Raises an error, or prints one warning, if a class of the held-out images has no training image."""
        unknown = sorted(set(np.unique(val).tolist()) - set(np.unique(train).tolist()))
        if not unknown:
            return
        names = ", ".join(map(str, unknown[:3])) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        cause = f"No training image has these labels of held-out images: {names}"
        if self._check:
            raise UserError(cause, "Give both splits the same classes, or use more training images.")
        if not self._warned:
            messages.say(f"WARNING: {cause}. They count as wrong.")
        self._warned = True

    def labelled(self, state: HasEncoder) -> LabelledSplits:
        """The arrays of `for_state`, all with labels.

        Raises:
          UserError: the training or the held-out images have no labels.
        """
        return _labelled(self.for_state(state))


def _labelled(splits: Splits) -> LabelledSplits:
    train, labels, val, val_labels = splits
    if labels is None or val_labels is None:
        raise UserError("The training or the held-out images have no labels", "Choose splits that both have labels.")
    return train, labels, val, val_labels


class KNN:
    """Weighted nearest neighbours: `knn.predict` for several k and temperatures.

    Args:
      ks, temperatures: the first of each make the main result. All other pairs are reported too. A k above the number
        of training images that were read becomes that number.
    """

    title = "kNN"

    def __init__(
        self,
        frozen: FrozenFeatures,
        *,
        ks: Sequence[int] = (200,),
        temperatures: Sequence[float] = (0.1,),
        every_steps: int = 0,
    ) -> None:
        self._frozen, self._ks, self._temperatures = frozen, tuple(ks), tuple(temperatures)
        self.every_steps = every_steps

    @finite.or_nan("val/knn_top1")
    def run(self, state: HasEncoder) -> dict[str, float]:
        """{"val/knn_top1"}, a fraction. With several pairs, also its 95 % interval "val/knn_low", "val/knn_high", and
        the accuracy of each pair, such as "val/knn_top1_k20_t0.07".
        """
        bank, labels, queries, val_labels = self._frozen.labelled(state)
        ks, classes = self.ks(state), self._frozen.num_classes
        predicted = knn.predict(bank, labels, queries, ks=ks, temperatures=self._temperatures, num_classes=classes)
        accuracy = (predicted == val_labels).mean(axis=-1)
        pairs = [(i, j) for i in range(len(ks)) for j in range(len(self._temperatures))]
        by_pair = {f"val/knn_top1_k{ks[i]}_t{self._temperatures[j]:g}": float(accuracy[i, j]) for i, j in pairs}
        low, high = confidence.interval(predicted[0, 0] == val_labels)
        main = {"val/knn_top1": float(accuracy[0, 0])}
        return main if len(by_pair) == 1 else main | {"val/knn_low": low, "val/knn_high": high} | by_pair

    def ks(self, state: HasEncoder) -> tuple[int, ...]:
        """The numbers of neighbours that vote: each is capped at the number of training images that were read."""
        count = len(self._frozen.labelled(state)[0])
        if capped := [k for k in self._ks if k > count]:
            asked = ", ".join(map(str, capped))
            messages.say_once(f"kNN: all {count} training images vote, because there are fewer than {asked}")
        return tuple(dict.fromkeys(min(k, count) for k in self._ks))


class OnlineProbe:
    """The accuracy, on held-out images, of the linear probe that is trained along with the encoder."""

    title = "online probe"

    def __init__(self, frozen: FrozenFeatures, *, every_steps: int = 0) -> None:
        self._frozen = frozen
        self.every_steps = every_steps

    @finite.or_nan("val/online_top1")
    def run(self, state: TrainState) -> dict[str, float]:
        """{"val/online_top1"}, a fraction."""
        _, _, queries, val_labels = self._frozen.labelled(state)
        weights = jax.device_get(state.params["probe"])
        logits = queries @ weights["kernel"] + weights["bias"]
        finite.require(logits, "the held-out split")
        return {"val/online_top1": float((logits.argmax(axis=1) == val_labels).mean())}


class LinearProbe:
    """A linear classifier that `probe.fit` fits on the cached features."""

    title = "linear probe"

    def __init__(self, frozen: FrozenFeatures, *, epochs: int = 30, every_steps: int = 0) -> None:
        self._frozen, self._epochs = frozen, epochs
        self.every_steps = every_steps

    @cached_for_last_state
    def fit(self, state: HasEncoder) -> tuple[probe.Probe, np.ndarray]:
        """The fitted probe with its predictions, and the true labels, int32 (n,)."""
        x, labels, queries, val_labels = self._frozen.labelled(state)
        classes = self._frozen.num_classes
        return probe.fit(x, labels, queries, num_classes=classes, epochs=self._epochs), val_labels

    def run(self, state: HasEncoder) -> dict[str, float]:
        """{"val/linear_top1", "val/linear_low", "val/linear_high"}, a fraction and its 95 % interval. Also
        "val/linear_rate" and "val/linear_decay", the pair chosen on held-out training images."""
        fitted, val_labels = self.fit(state)
        low, high = confidence.interval(fitted.predicted == val_labels)
        values = {"top1": float((fitted.predicted == val_labels).mean()), "low": low, "high": high}
        values |= {"rate": fitted.rate, "decay": fitted.decay}
        return {f"val/linear_{name}": value for name, value in values.items()}


class SVM:
    """The VOC07 protocol: a linear SVM for each class of multi-label images, by `svm.mean_average_precision`.

    Args:
      frozen: features of images without single labels.
      targets, val_targets: int8 (m, classes) and (n, classes) of 1, 0 (ignored) and -1, in the order of the images.
    """

    title = "linear SVM"

    def __init__(
        self, frozen: FrozenFeatures, targets: np.ndarray, val_targets: np.ndarray, *, every_steps: int = 0
    ) -> None:
        self._frozen, self._targets = frozen, (targets, val_targets)
        self.every_steps = every_steps

    def run(self, state: HasEncoder) -> dict[str, float]:
        """{"val/svm_map"}, the mean over classes of VISSL's average precision, a fraction.

        Raises:
          UserError: some images were unreadable.
        """
        x, _, queries, _ = self._frozen.for_state(state)
        train, val = self._targets
        if (len(x), len(queries)) != (len(train), len(val)):
            raise UserError(
                f"{len(x)} training and {len(queries)} held-out images are readable, of {len(train)} and {len(val)}",
                "Restore the unreadable images: the VOC07 protocol needs all of them.",
            )
        result = svm.mean_average_precision(x, train, queries, val, points="all", progress=messages.say)
        return {"val/svm_map": result["map"]}
