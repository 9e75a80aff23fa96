"""kNN and the probe against scikit-learn; every image counted once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from bt_jax import augment, models, sharding
from bt_jax.data import device
from bt_jax.evals import features, knn, probe


@pytest.fixture(scope="module")
def clusters():
    """Noisy classes, so that accuracy is well under 1 and every vote matters: train and test features and labels."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((7, 24))

    def draw(n):
        labels = rng.integers(0, 7, n).astype(np.int32)
        return (centres[labels] + 1.6 * rng.standard_normal((n, 24))).astype(np.float32), labels

    return *draw(900), *draw(701)


@pytest.mark.parametrize("k, temperature", [(1, 0.1), (20, 0.1), (200, 0.5)])
def test_knn_equals_scikit_learn(clusters, k, temperature):
    bank, bank_labels, queries, labels = clusters
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(bank, bank_labels)
    found = knn.predict(bank, bank_labels, queries, k=k, temperature=temperature, num_classes=7)
    # A vote that is a tie to float32 may fall either way.
    assert (found == reference.predict(queries)).mean() > 0.998
    share = knn.top1(bank, bank_labels, queries, labels, k=k, temperature=temperature, num_classes=7)
    assert share == (found == labels).mean() and 0.3 < share < 0.95


def test_k_larger_than_the_bank(clusters):
    bank, bank_labels, queries, _ = clusters
    found = knn.predict(bank[:5], bank_labels[:5], queries[:3], k=200, temperature=0.1, num_classes=7)
    assert set(found) <= set(bank_labels[:5])


def test_probe_is_as_good_as_logistic_regression(clusters):
    features_, labels, test, test_labels = clusters
    reference = LogisticRegression(max_iter=1000).fit(features_, labels).score(test, test_labels)
    found = probe.top1(features_, labels, test, test_labels, num_classes=7)
    assert abs(found - reference) < 0.03  # sd of a share of 701 images at 0.7 is 0.017; both see the same images


def test_probe_does_not_mind_the_scale(clusters):
    features_, labels, test, test_labels = clusters
    shift = np.linspace(-100, 100, 24, dtype=np.float32)
    moved = probe.top1(1e-3 * features_ + shift, labels, 1e-3 * test + shift, test_labels, num_classes=7)
    plain = probe.top1(features_, labels, test, test_labels, num_classes=7)
    assert abs(moved - plain) < 0.03  # float32 around 100 resolves 1e-5, a hundredth of the deviation


@pytest.mark.parametrize("batch_size", (8, 16, 64))
def test_every_image_counts_once(batch_size):
    """37 images in any batch over 8 devices: the same features, in order, without padding."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (37, 16, 16, 3), np.uint8), np.arange(37)
    net, recipe, mesh = (
        models.build("resnet18", width=0.125, small_images=True),
        augment.cifar(16),
        sharding.make_mesh(),
    )
    variables = net.init(jax.random.key(0))
    embed = features.make_embed(net, recipe, mesh)
    batches = device.eval_batches(images, labels, batch_size=batch_size)
    found, order = features.extract(embed, variables, batches, mesh)
    wanted = net.apply(variables, augment.evaluation_view(jnp.asarray(images), recipe), train=False)
    np.testing.assert_array_equal(order, labels)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())  # float32, other batches


@pytest.mark.parametrize("steps, limit, size", [(195, 65, 65), (390, 50, 39), (97, 50, 49), (44, 50, 44), (7, 1, 1)])
def test_dispatch_size(steps, limit, size):
    assert device.dispatch_size(steps, limit) == size


def test_epoch_order_is_a_permutation_of_its_own():
    key = jax.random.key(0)
    first, again, second = (np.asarray(device.epoch_order(key, epoch, 101)) for epoch in (0, 0, 1))
    assert sorted(first) == list(range(101))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
