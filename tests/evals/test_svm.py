"""Linear SVMs: average precision by hand and against scikit-learn, and the protocol in a second implementation."""

import threading
import warnings

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from bt_jax.evals import svm
from bt_jax.messages import UserError

# Average precision ---------------------------------------------------------------------------------------------------

RANKED = np.array([1, -1, 1, 1, -1, -1, 1, -1, -1, 1])  # from the highest score down


def test_average_precision_by_hand():
    """Five present images at ranks 1, 3, 4, 7, 10: precisions 1, 2/3, 3/4, 4/7, 1/2 at recalls 1/5 ... 5/5.

    The highest precision at each recall or above it is 1, 3/4, 3/4, 4/7, 1/2. The points 0, 0.1, 0.2 have the first,
    0.3 to 0.6 have 3/4, 0.7 and 0.8 have 4/7, and 0.9 and 1 have the last.
    """
    scores = np.linspace(1, 0, 10)
    area = (1 + 3 / 4 + 3 / 4 + 4 / 7 + 1 / 2) / 5
    eleven = (3 * 1 + 4 * 3 / 4 + 2 * 4 / 7 + 2 * 1 / 2) / 11
    shuffled = np.random.default_rng(0).permutation(10)
    for order in (np.arange(10), shuffled):
        assert svm.average_precision(scores[order], RANKED[order], points="all") == pytest.approx(area, abs=1e-12)
        assert svm.average_precision(scores[order], RANKED[order], points="11") == pytest.approx(eleven, abs=1e-12)


def test_a_recall_of_three_tenths_reaches_the_fourth_point():
    """Three of ten present images come first, then 7 absent ones, then the rest: p is 1 at 0, 0.1, 0.2 and 0.3."""
    targets = np.array([1] * 3 + [-1] * 7 + [1] * 7)
    precision = svm.average_precision(-np.arange(17.0), targets, points="11")
    assert precision == pytest.approx((4 * 1 + 7 * 10 / 17) / 11, abs=1e-12)


def test_perfect_and_reversed_rankings():
    targets = np.array([1, 1, -1, -1, -1])
    for points in svm.POINTS:
        assert svm.average_precision(np.arange(5)[::-1], targets, points=points) == 1
        # The present images are the last two of five: precisions 1/4 and 2/5, so that p is 2/5 everywhere.
        assert svm.average_precision(np.arange(5), targets, points=points) == pytest.approx(0.4)


def test_all_points_against_scikit_learn():
    """Both are equal if precision never rises with recall; otherwise ours is never less, as it interpolates."""
    falling = np.array([1, 1, -1, 1, -1, -1, 1, -1, -1, -1, -1, 1])  # precisions 1, 1, 3/4, 4/7, 5/12
    scores = -np.arange(12.0)
    expected = average_precision_score(falling, scores)
    assert svm.average_precision(scores, falling, points="all") == pytest.approx(expected, abs=1e-12)
    rng, larger = np.random.default_rng(0), 0
    for _ in range(50):
        targets, scores = np.where(rng.random(40) < 0.3, 1, -1), rng.integers(0, 15, 40) / 15  # with ties
        targets[0] = 1
        interpolated = svm.average_precision(scores, targets, points="all")
        plain = average_precision_score(targets, scores)
        assert interpolated >= plain - 1e-12
        larger += interpolated > plain + 1e-6
    assert larger > 40


def test_equal_scores_are_retrieved_together():
    for order in (RANKED, RANKED[::-1]):
        for points in svm.POINTS:
            assert svm.average_precision(np.zeros(10), order, points=points) == 0.5


def test_difficult_images_are_not_ranked():
    scores, targets = np.linspace(1, 0, 10), RANKED.copy()
    targets[1] = 0
    used = targets != 0
    for points in svm.POINTS:
        precision = svm.average_precision(scores, targets, points=points)
        assert precision == svm.average_precision(scores[used], targets[used], points=points)
        assert precision > svm.average_precision(scores, RANKED, points=points)


def test_no_present_image_and_unknown_points():
    assert np.isnan(svm.average_precision(np.arange(3.0), np.array([-1, 0, -1]), points="11"))
    with pytest.raises(UserError, match="'10'"):
        svm.average_precision(np.arange(3.0), np.array([-1, 1, -1]), points="10")


# The protocol --------------------------------------------------------------------------------------------------------

COSTS = (0.01, 1.0, 100.0)


@pytest.fixture(scope="module")
def noisy():
    """Features (300, 12) and targets (300, 4) of train and test; one target in six is difficult. The precision is far
    from 1."""
    rng = np.random.default_rng(1)
    directions = rng.standard_normal((12, 4))

    def draw(n):
        hidden = rng.standard_normal((n, 12))
        scores = hidden @ directions + 2.5 * rng.standard_normal((n, 4))
        targets = np.where(scores > 3, 1, -1).astype(np.int8)
        targets[rng.random((n, 4)) < 1 / 6] = 0
        return (hidden + 0.3) * rng.uniform(0.1, 10, (n, 1)), targets

    return *draw(300), *draw(300)


def machine(cost):
    return LinearSVC(
        C=cost, class_weight={1: 2, -1: 1}, dual=True, loss="squared_hinge", max_iter=2000, tol=1e-4, random_state=0
    )


def test_protocol_equals_scikit_learn_class_by_class(noisy):
    """A second implementation: cross-validation, a fit on all training images, difficult images left out of both."""
    features, targets, test, test_targets = noisy
    result = svm.mean_average_precision(*noisy, costs=COSTS, points="all")
    features, test = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (features, test))
    precisions, chosen = [], []
    for k in range(4):
        used, test_used = targets[:, k] != 0, test_targets[:, k] != 0
        x, y = features[used], targets[used, k]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folds = [cross_val_score(machine(c), x, y, cv=3, scoring="average_precision").mean() for c in COSTS]
            chosen.append(COSTS[int(np.argmax(folds))])
            scores = machine(chosen[-1]).fit(x, y).decision_function(test[test_used])
        precisions.append(svm.average_precision(scores, test_targets[test_used, k], points="all"))
    assert result["costs"] == chosen and len(set(chosen)) > 1, "the classes must have different costs"
    np.testing.assert_allclose(result["per_class"], precisions, atol=2e-3)  # float32 can swap two ranks
    assert result["map"] == pytest.approx(np.mean(result["per_class"])) and 0.3 < result["map"] < 0.9


@pytest.mark.parametrize("points", svm.POINTS)
def test_separable_classes_give_one(points):
    rng = np.random.default_rng(0)

    def draw(n):
        targets = np.where(rng.random((n, 3)) < 0.4, 1, -1).astype(np.int8)
        return targets + 0.1 * rng.standard_normal((n, 3)), targets

    lines = []
    result = svm.mean_average_precision(*draw(60), *draw(40), points=points, progress=lines.append)
    assert result["map"] == 1 and result["per_class"] == [1, 1, 1] and set(result["costs"]) <= set(svm.COSTS)
    assert [line.partition(":")[0] for line in lines] == ["SVM 1/3", "SVM 2/3", "SVM 3/3"]


@pytest.mark.parametrize("split", [1, 3])
def test_difficult_images_count_in_neither_split(noisy, split):
    """The features of a difficult image have no influence. With another target, they would have one."""
    arguments = [a[:, :1] if a.shape[1] == 4 else a for a in noisy]  # a single class: other classes use these images
    plain = svm.mean_average_precision(*arguments, costs=(1.0,))["map"]
    difficult = arguments[split][:, 0] == 0
    moved = [a.copy() for a in arguments]
    moved[split - 1][difficult] *= -1
    assert svm.mean_average_precision(*moved, costs=(1.0,))["map"] == plain
    for value in (1, -1):
        changed = [a.copy() for a in arguments]
        changed[split][difficult] = value
        assert svm.mean_average_precision(*changed, costs=(1.0,))["map"] != plain


def test_classes_without_images_are_left_out(noisy):
    features, targets, test, test_targets = (a.copy() for a in noisy)
    expected = svm.mean_average_precision(features, targets[:, 3:], test, test_targets[:, 3:], costs=(1.0,))
    targets[targets[:, 0] == 1, 0] = -1
    test_targets[test_targets[:, 1] == 1, 1] = 0
    all_but_one = np.flatnonzero(targets[:, 2] == 1)[1:]  # one image with the class is too few for two folds
    targets[all_but_one, 2] = -1
    lines = []
    result = svm.mean_average_precision(features, targets, test, test_targets, costs=(1.0,), progress=lines.append)
    assert np.isnan(result["per_class"][:3]).all() and np.isnan(result["costs"][:3]).all()
    assert result["map"] == result["per_class"][3] == expected["map"]
    assert ["left out" in line for line in lines] == [True, True, True, False]
    with pytest.raises(UserError, match="^No class"):
        svm.mean_average_precision(features, targets[:, :3], test, test_targets[:, :3], costs=(1.0,))


def test_two_images_of_a_class_make_two_folds(noisy):
    features, targets, test, test_targets = (a.copy() for a in noisy)
    targets[np.flatnonzero(targets[:, 0] == 1)[2:], 0] = -1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn warns of folds without an image of the class
        result = svm.mean_average_precision(features, targets[:, :1], test, test_targets[:, :1], costs=(1.0,))
    assert 0 < result["map"] < 1


def test_unconverged_fits_are_counted_without_a_warning(noisy, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert svm.mean_average_precision(*noisy, costs=(0.01,))["unconverged"] == 0
        monkeypatch.setattr(svm, "MAX_ITER", 2)
        result = svm.mean_average_precision(*noisy, costs=(100.0, 1000.0))
    assert result["unconverged"] == 4 * (2 * 3 + 1)


def test_threads_have_no_influence_on_the_result(noisy, monkeypatch):
    """An unconverged fit depends on the order in which liblinear visits the images, from its one random generator."""
    monkeypatch.setattr(svm, "MAX_ITER", 5)
    rows = [np.tile(a, (10, 1)) for a in noisy]  # a fit takes so long that others would run at the same time

    def evaluate(seed):
        return svm.mean_average_precision(*rows, costs=(100.0,), seed=seed)["per_class"]

    alone = [evaluate(seed) for seed in range(4)]
    assert alone[0] != alone[1]
    together = [None] * 4
    threads = [threading.Thread(target=lambda s=seed: together.__setitem__(s, evaluate(s))) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_features_that_are_not_finite(noisy):
    features, targets, test, test_targets = (a.copy() for a in noisy)
    test[7, 3] = np.nan
    with pytest.raises(UserError, match="1 of the 300 test images are not finite"):
        svm.mean_average_precision(features, targets, test, test_targets)
