"""The classification protocol of VOC07: a linear SVM for each class, on frozen features, and mean average precision.

The settings are VISSL's (vissl/utils/svm_utils/svm_trainer.py). For a comparison with its numbers:
- VISSL reports the all-point average precision (`points="all"`). VOC2007 itself uses the 11-point one.
- VISSL trains on difficult images of a class as on images without the class. This module leaves them out of the SVM of
  that class. To train as VISSL does, pass `np.where(targets == 0, -1, targets)` as the training targets.
- The folds follow the order of the images, in VISSL and here. Another order gives other folds, and perhaps another
  cost.

scikit-learn is imported only by the functions that need it.
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
    """The result of `mean_average_precision`; precisions are fractions.

    Attributes:
      map: mean over the classes that are evaluated.
      per_class: average precision of every class; nan for a class that is not evaluated.
      costs: the chosen cost of every class; nan for a class that is not evaluated.
      unconverged: number of fits that reached MAX_ITER, those on folds included.
    """

    map: float
    per_class: list[float]
    costs: list[float]
    unconverged: int


# liblinear has one random generator per process, and every fit seeds it. Parallel fits would share its numbers.
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
    """Fits a linear SVM for each class on training images, and computes the mean average precision on test images.

    Features are scaled to unit length. For each class, cross-validation on the training images chooses the cost: the
    first of those with the highest mean average precision (scikit-learn's). The SVM is then fitted on all training
    images. Folds are stratified and not shuffled. An image with target 0 is ignored for that class, in training and
    in the test.

    The result depends on the arguments alone, with any number of threads or processes. One thread fits at a time.

    Args:
      features: float (n, d), of the training images.
      targets: int (n, classes), 1 present, -1 absent, 0 difficult.
      test_features, test_targets: the same for the test images.
      folds: number of folds, capped at the number of training images with the class and at that of images without it.
      points: of `average_precision`, on the test images.
      seed: of the order in which liblinear visits the images.
      progress: called with one line after each class.

    Returns:
      `Precisions`. A class is evaluated if at least one test image and two training images have it, and two training
      images lack it.

    Raises:
      UserError: scikit-learn is missing, `points` is unknown, features are not finite, or no class can be evaluated.
    """
    _check_scikit_learn()
    _check_points(points)
    features, test_features = _unit_length(features, "training"), _unit_length(test_features, "test")
    targets, test_targets = np.asarray(targets), np.asarray(test_targets)
    per_class, chosen, unconverged = [], [], 0
    for column, test_column in zip(targets.T, test_targets.T, strict=True):
        parts = min(folds, int((column > 0).sum()), int((column < 0).sum()))
        precision = cost = float("nan")
        if parts >= 2 and (test_column > 0).any():
            used = column != 0
            machine, failed = _fit_best(features[used], column[used], costs=costs, folds=parts, seed=seed)
            precision = average_precision(machine.decision_function(test_features), test_column, points=points)
            cost, unconverged = float(machine.C), unconverged + failed
        per_class.append(precision)
        chosen.append(cost)
        if progress:
            result = "left out, too few images have or lack it" if np.isnan(cost) else f"AP {precision:.4f}, C {cost:g}"
            progress(f"SVM {len(chosen)}/{targets.shape[1]}: {result}")
    if np.isnan(per_class).all():
        raise UserError(
            "No class can be evaluated: it needs a test image, two training images that have it, and two that lack it",
            "Choose splits with labels, or use more images.",
        )
    return {
        "map": float(np.nanmean(per_class)),
        "per_class": per_class,
        "costs": chosen,
        "unconverged": unconverged,
    }


def average_precision(scores: Real[np.ndarray, " n"], targets: Int[np.ndarray, " n"], *, points: str) -> float:
    """The average precision of a ranking, interpolated as in the VOC development kit.

    Images are retrieved from the highest score down. Images with equal scores are retrieved together, so that their
    order has no influence. After each score, the recall r is the share of the present images that are retrieved. The
    precision is the share of present images among the retrieved ones. p(r) is the highest precision at a recall of r or
    more.

    With `points` "all", the result is the area under p, sum of (r_i - r_(i-1)) p(r_i), as in the kit since VOC2010 and
    in VISSL. With "11", it is the mean of p at r = 0, 0.1, ... 1, as in the kit of VOC2007. Recalls are compared as
    integers: in floating point, 3 of 10 is less than 0.1 + 0.1 + 0.1. scikit-learn's average_precision_score sums the
    precisions instead of p, and is therefore never above "all".

    Args:
      scores: float (n,).
      targets: int (n,), 1 present, -1 absent, 0 ignored.

    Returns:
      A fraction; nan if no target is 1.

    Raises:
      UserError: `points` is unknown.
    """
    _check_points(points)
    targets = np.asarray(targets)
    scores, present = np.asarray(scores)[targets != 0], targets[targets != 0] > 0
    total = int(present.sum())
    if not total:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    retrieved = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1) + 1
    hits = np.cumsum(present[order])[retrieved - 1]
    envelope = np.maximum.accumulate((hits / retrieved)[::-1])[::-1]
    if points == "all":
        return float((np.diff(hits, prepend=0) * envelope).sum() / total)
    return float(envelope[np.searchsorted(10 * hits, np.arange(11) * total)].mean())


def _fit_best(
    features: np.ndarray, targets: np.ndarray, *, costs: Sequence[float], folds: int, seed: int
) -> tuple[Any, int]:
    """(LinearSVC with the best cost of cross-validation, fitted on all images; number of unconverged fits)."""
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    splits, unconverged = list(StratifiedKFold(folds).split(features, targets)), 0
    means = []
    for cost in costs:
        precisions = []
        for train, held_out in splits:
            machine = _fit(features[train], targets[train], cost, seed)
            precisions.append(average_precision_score(targets[held_out], machine.decision_function(features[held_out])))
            unconverged += _hit_limit(machine)
        means.append(np.mean(precisions))
    machine = _fit(features, targets, costs[int(np.argmax(means))], seed)
    return machine, unconverged + _hit_limit(machine)


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
        warnings.simplefilter("ignore", ConvergenceWarning)  # `_hit_limit` counts these fits
        return machine.fit(features, targets)


def _hit_limit(machine: Any) -> bool:
    """Whether a fit reached MAX_ITER: the condition of scikit-learn's ConvergenceWarning."""
    return bool(machine.n_iter_ >= MAX_ITER)


def _unit_length(features: np.ndarray, split: str) -> np.ndarray:
    """Rows of unit length, in float64 like liblinear's computations."""
    features = np.asarray(features)
    non_finite = int((~np.isfinite(features)).any(axis=1).sum())
    if non_finite:
        raise UserError(
            f"The features of {non_finite} of the {len(features)} {split} images are not finite",
            "Evaluate a checkpoint from before the training diverged.",
        )
    return np.asarray(unit_rows(features), np.float64)


def _check_points(points: str) -> None:
    if points not in POINTS:
        raise UserError(f"points={points!r} is unknown", f"Choose from {', '.join(POINTS)}.")


def _check_scikit_learn() -> None:
    try:
        import sklearn.svm  # noqa: F401
    except ImportError as error:
        raise UserError(f"scikit-learn cannot be imported ({error})", "Run pip install scikit-learn.") from None
