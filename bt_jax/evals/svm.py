"""Linear SVMs on frozen features, one per class, by mean average precision: the classification protocol of VOC07.

Settings are VISSL's (vissl/utils/svm_utils/svm_trainer.py). Three things to know when comparing with its numbers:
- It reports the all-point average precision (`points="all"`); VOC2007's own measure is the 11-point one.
- In training it takes images that show a class only with difficulty for images without the class. Here they are left
  out of that class's SVM; `np.where(targets == 0, -1, targets)` as targets of train gives VISSL's way.
- Its folds follow the order of the images, as here, so another order gives other folds and perhaps another cost.

scikit-learn is imported when it is needed, not with this module.
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np

from bt_jax.messages import UserError
from bt_jax.objectives.functions import unit_rows
from bt_jax.shapes import Float, Int, Real

COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)  # VISSL's, and those of VICReg's authors
CLASS_WEIGHT = {1: 2, -1: 1}  # an image with the class counts twice: VISSL
MAX_ITER = 2000  # passes over the images: VISSL
TOLERANCE = 1e-4  # VISSL, and scikit-learn's own
POINTS = ("all", "11")


class Precisions(TypedDict):
    """What `mean_average_precision` found; fractions.

    Attributes:
      map: mean over the classes that count.
      per_class: average precision of every class, nan where it does not count.
      costs: the chosen ones, likewise.
      unconverged: fits that met MAX_ITER, among those on folds too.
    """

    map: float
    per_class: list[float]
    costs: list[float]
    unconverged: int


# liblinear draws from one generator per process, which every fit seeds: fits that ran at once would share its draws.
_LIBLINEAR = threading.Lock()


def mean_average_precision(
    features: Float[np.ndarray, "n d"],
    targets: Int[np.ndarray, "n classes"],
    test_features: Float[np.ndarray, "m d"],
    test_targets: Int[np.ndarray, "m classes"],
    *,
    costs: Sequence[float] = COSTS,
    folds: int = 3,
    points: str = "11",
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Precisions:
    """Mean over classes of the average precision on test of a linear SVM fitted on train.

    Features are brought to unit length. For each class the cost is the one with the highest average precision
    (scikit-learn's) in the mean of the folds of train, the first of several; the SVM is then fitted again on all of
    train. Folds are stratified and not shuffled. An image whose target is 0 takes no part in that class, neither in
    train nor in test.

    A function of its arguments alone, also in several threads, which take turns fitting, and in several processes.

    Args:
      features: float (n, d); targets: int (n, classes), 1 present, -1 absent, 0 difficult.
      test_features, test_targets: likewise.
      folds: fewer for a class that fewer images have, or lack.
      points: of `average_precision`, on test.
      seed: of the order in which liblinear visits the images.
      progress: is told one line after each class.

    Returns:
      `Precisions`. A class is left out of the mean, and nan in both lists, where no image of test or fewer than two of
      train have it, or fewer than two of train lack it.

    Raises:
      UserError: scikit-learn is missing, `points` is unknown, features are not finite, no class is left.
    """
    _check_scikit_learn()
    _check_points(points)
    features, test_features = _unit_length(features, "train"), _unit_length(test_features, "test")
    targets, test_targets = np.asarray(targets), np.asarray(test_targets)
    per_class, chosen, unconverged = [], [], 0
    for column, test_column in zip(targets.T, test_targets.T, strict=True):
        parts = min(folds, int((column > 0).sum()), int((column < 0).sum()))
        precision = cost = float("nan")
        if parts >= 2 and (test_column > 0).any():
            kept = column != 0
            machine, failed = _fit_best(features[kept], column[kept], costs=costs, folds=parts, seed=seed)
            precision = average_precision(machine.decision_function(test_features), test_column, points=points)
            cost, unconverged = float(machine.C), unconverged + failed
        per_class.append(precision)
        chosen.append(cost)
        if progress:
            said = "left out, too few images have or lack it" if np.isnan(cost) else f"AP {precision:.4f}, C {cost:g}"
            progress(f"SVM {len(chosen)}/{targets.shape[1]}: {said}")
    if np.isnan(per_class).all():
        raise UserError(
            "no class has an image in test and two in train, so there is no average precision",
            "Choose splits with labels, or more images",
        )
    return {
        "map": float(np.nanmean(per_class)),
        "per_class": per_class,
        "costs": chosen,
        "unconverged": unconverged,
    }


def average_precision(scores: Real[np.ndarray, " n"], targets: Int[np.ndarray, " n"], *, points: str) -> float:
    """Average precision of a ranking, interpolated as by the VOC development kit.

    Images are taken from the highest score down; images of one score come together, so that their order plays no part.
    After each score stand a recall r (share of the present ones that are taken) and a precision (share of present ones
    among those taken); p(r) is the highest precision at a recall of r or more.

    With `points` "all" the result is the area under p, sum of (r_i - r_(i-1)) p(r_i), as by the kit since VOC2010 and
    by VISSL. With "11" it is the mean of p at r = 0, 0.1, ... 1, as by the kit of VOC2007. Recalls are compared as
    whole numbers: in floating point 3 of 10 would not reach 0.1 + 0.1 + 0.1. scikit-learn's average_precision_score is
    the sum with the precisions themselves in place of p, and so never more than "all".

    Args:
      scores: float (n,); targets: int (n,), 1 present, -1 absent, 0 ignored.

    Returns:
      A fraction; nan where no target is 1.

    Raises:
      UserError: another word for `points`.
    """
    _check_points(points)
    targets = np.asarray(targets)
    scores, present = np.asarray(scores)[targets != 0], targets[targets != 0] > 0
    total = int(present.sum())
    if not total:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    taken = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1) + 1
    found = np.cumsum(present[order])[taken - 1]
    envelope = np.maximum.accumulate((found / taken)[::-1])[::-1]
    if points == "all":
        return float((np.diff(found, prepend=0) * envelope).sum() / total)
    return float(envelope[np.searchsorted(10 * found, np.arange(11) * total)].mean())


def _fit_best(
    features: np.ndarray, targets: np.ndarray, *, costs: Sequence[float], folds: int, seed: int
) -> tuple[Any, int]:
    """(LinearSVC of the cost that is best in cross-validation, fitted on all; number of fits that did not converge)."""
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    splits, unconverged = list(StratifiedKFold(folds).split(features, targets)), 0
    means = []
    for cost in costs:
        found = []
        for train, held in splits:
            machine = _fit(features[train], targets[train], cost, seed)
            found.append(average_precision_score(targets[held], machine.decision_function(features[held])))
            unconverged += _stopped(machine)
        means.append(np.mean(found))
    machine = _fit(features, targets, costs[int(np.argmax(means))], seed)
    return machine, unconverged + _stopped(machine)


def _fit(features: np.ndarray, targets: np.ndarray, cost: float, seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    machine = LinearSVC(
        penalty="l2",
        loss="squared_hinge",
        dual=True,  # pyright: ignore[reportArgumentType]  (scikit-learn has no types, and the default is a string)
        C=cost,
        class_weight=CLASS_WEIGHT,
        intercept_scaling=1,
        tol=TOLERANCE,
        max_iter=MAX_ITER,
        random_state=seed,
    )
    with _LIBLINEAR, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted by `_stopped` instead
        return machine.fit(features, targets)


def _stopped(machine: Any) -> bool:
    """Whether a fit met MAX_ITER: the condition of scikit-learn's ConvergenceWarning."""
    return bool(machine.n_iter_ >= MAX_ITER)


def _unit_length(features: np.ndarray, split: str) -> np.ndarray:
    """Rows of unit length, float64, which is what liblinear computes in."""
    features = np.asarray(features)
    broken = int((~np.isfinite(features)).any(axis=1).sum())
    if broken:
        raise UserError(
            f"the features of {broken} of the {len(features)} images of {split} are not finite",
            "Evaluate a checkpoint from before the training diverged",
        )
    return np.asarray(unit_rows(features), np.float64)


def _check_points(points: str) -> None:
    if points not in POINTS:
        raise UserError(f"points is {points!r}", f"Use one of {', '.join(POINTS)}")


def _check_scikit_learn() -> None:
    try:
        import sklearn.svm  # noqa: F401
    except ImportError as error:
        raise UserError(f"scikit-learn cannot be imported ({error})", "Install it: pip install scikit-learn") from None
