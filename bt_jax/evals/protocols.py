"""The protocols on frozen features, as evaluators: each has a schedule and run(state) -> {name: value}.

Training images are the neighbours and train the classifiers; held-out images are only classified. The features are
taken once for all protocols that share a `Frozen`.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from bt_jax import messages
from bt_jax.evals import confidence, features, finite, knn, probe, svm
from bt_jax.evals.base import cached_for_last_state
from bt_jax.evals.features import Encoded
from bt_jax.messages import UserError
from bt_jax.state import TrainState

Batches = Callable[[], Iterable[features.HostBatch]]
Found = tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray | None]
Labelled = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Frozen:
    """Features of training and held-out images by the encoder of a state; kept for the state last asked for.

    Args:
      embed: of `features.make_embed`.
      train, val: functions that start a pass over padded batches.
      num_classes: 0 where labels are not used.
      names: of the two splits, for messages.
      check: refuses held-out images of a class that no training image has, not only warns; not for samples of images.
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
        self._said = False

    def by(self, embed: features.Embed) -> "Frozen":
        """The same images by another embed function."""
        shared = {"mesh": self._mesh, "num_classes": self.num_classes, "names": self._names, "check": self._check}
        other = Frozen(embed, *self._passes, **shared)
        other._said = self._said
        return other

    @cached_for_last_state
    def of(self, state: Encoded) -> Found:
        """(features (m, d), labels (m,), held-out features (n, d), labels (n,)); None for labels where there are none.

        Raises:
          NotFiniteError: some features are not finite.
          UserError: with `check`, held-out images of a class that no training image has.
        """
        train, val = (
            features.extract(self._embed, state.encoder(), start(), self._mesh, of=name)
            for start, name in zip(self._passes, self._names, strict=True)
        )
        found = (*train, *val)
        if self.num_classes:
            _, labels, _, held_out = _labelled(found)
            self._compare(labels, held_out)
        return found

    def _compare(self, train: np.ndarray, val: np.ndarray) -> None:
        """Fails, or warns once, if the classes of some held-out images have no training image."""
        unknown = sorted(set(np.unique(val).tolist()) - set(np.unique(train).tolist()))
        if not unknown:
            return
        cause = (
            f"The held-out images have labels that no training image has ({len(unknown)} of them, such as {unknown[0]})"
        )
        if self._check:
            raise UserError(cause, "Give both splits the same classes, or use more training images.")
        if not self._said:
            messages.say(f"WARNING: {cause}: they count as wrong")
        self._said = True

    def labelled(self, state: Encoded) -> Labelled:
        """As `of`, for images that all have labels.

        Raises:
          UserError: the training or the held-out images have none.
        """
        return _labelled(self.of(state))


def _labelled(found: Found) -> Labelled:
    train, labels, val, held_out = found
    if labels is None or held_out is None:
        raise UserError("The training or the held-out images have no labels", "Choose splits that both have labels.")
    return train, labels, val, held_out


class KNN:
    """Weighted nearest neighbours, see `knn.predict`, for lists of k and of temperatures.

    Args:
      ks, temperatures: the first of each is the headline; the others are told beside it, and nothing is chosen.
    """

    def __init__(
        self,
        frozen: Frozen,
        *,
        ks: Sequence[int] = (200,),
        temperatures: Sequence[float] = (0.1,),
        every_steps: int = 0,
    ) -> None:
        self._frozen, self._ks, self._temperatures = frozen, tuple(ks), tuple(temperatures)
        self.every_steps = every_steps

    @finite.or_nan("val/knn_top1")
    def run(self, state: Encoded) -> dict[str, float]:
        """{"val/knn_top1"} and, for lists, "val/knn_top1_k20_t0.07" of every pair; fractions."""
        bank, labels, queries, wanted = self._frozen.labelled(state)
        if max(self._ks) > len(bank):
            raise UserError(
                f"{max(self._ks)} neighbours are asked for, and there are {len(bank)} training images",
                "Lower the k of kNN (--config.evals.knn_k), or use more images.",
            )
        classes = self._frozen.num_classes
        predicted = knn.predict(
            bank, labels, queries, ks=self._ks, temperatures=self._temperatures, num_classes=classes
        )
        right = (predicted == wanted).mean(axis=-1)
        pairs = [(i, j) for i in range(len(self._ks)) for j in range(len(self._temperatures))]
        named = {f"val/knn_top1_k{self._ks[i]}_t{self._temperatures[j]:g}": float(right[i, j]) for i, j in pairs}
        low, high = confidence.interval(predicted[0, 0] == wanted)
        headline = {"val/knn_top1": float(right[0, 0])}
        return headline if len(named) == 1 else headline | {"val/knn_low": low, "val/knn_high": high} | named


class OnlineProbe:
    """The classifier that is trained alongside, on held-out images."""

    def __init__(self, frozen: Frozen, *, every_steps: int = 0) -> None:
        self._frozen = frozen
        self.every_steps = every_steps

    @finite.or_nan("val/online_top1")
    def run(self, state: TrainState) -> dict[str, float]:
        """{"val/online_top1"}, a fraction."""
        _, _, queries, wanted = self._frozen.labelled(state)
        head = jax.device_get(state.params["probe"])
        logits = queries @ head["kernel"] + head["bias"]
        finite.require(logits, "the held-out split")
        return {"val/online_top1": float((logits.argmax(axis=1) == wanted).mean())}


class LinearProbe:
    """A linear classifier fitted on the cached features, see `probe.fit`."""

    def __init__(self, frozen: Frozen, *, epochs: int = 30, every_steps: int = 0) -> None:
        self._frozen, self._epochs = frozen, epochs
        self.every_steps = every_steps

    @cached_for_last_state
    def fit(self, state: Encoded) -> tuple[probe.Probe, np.ndarray]:
        """The classifier with its predictions, and the true labels, int32 (n,)."""
        x, labels, queries, wanted = self._frozen.labelled(state)
        classes = self._frozen.num_classes
        return probe.fit(x, labels, queries, num_classes=classes, epochs=self._epochs), wanted

    def run(self, state: Encoded) -> dict[str, float]:
        """{"val/linear_top1", "val/linear_low", "val/linear_high"}, a fraction and its 95 % interval; and the rate and
        decay that were chosen on held-out training images."""
        found, wanted = self.fit(state)
        low, high = confidence.interval(found.predicted == wanted)
        values = {"top1": float((found.predicted == wanted).mean()), "low": low, "high": high}
        values |= {"rate": found.rate, "decay": found.decay}
        return {f"val/linear_{name}": value for name, value in values.items()}


class SVM:
    """One linear SVM a class on multi-label images: the VOC07 protocol, see `svm.mean_average_precision`.

    Args:
      frozen: over images without single labels.
      targets, val_targets: int8 (m, classes) and (n, classes) of 1, 0 (not counted) and -1, in the order of the images.
    """

    def __init__(self, frozen: Frozen, targets: np.ndarray, val_targets: np.ndarray, *, every_steps: int = 0) -> None:
        self._frozen, self._targets = frozen, (targets, val_targets)
        self.every_steps = every_steps

    def run(self, state: Encoded) -> dict[str, float]:
        """{"val/svm_map"}, the mean over classes of the average precision as VISSL counts it, a fraction."""
        x, _, queries, _ = self._frozen.of(state)
        train, val = self._targets
        if (len(x), len(queries)) != (len(train), len(val)):
            raise UserError(
                f"{len(x)} and {len(queries)} images were read, and their labels count {len(train)} and {len(val)}",
                "Restore the unreadable images: this protocol needs all of them.",
            )
        found = svm.mean_average_precision(x, train, queries, val, points="all", progress=messages.say)
        return {"val/svm_map": found["map"]}
