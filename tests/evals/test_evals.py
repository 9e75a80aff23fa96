"""kNN and the probe against scikit-learn, and the spectrum against NumPy; every image counts once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from bt_jax import augment, models, sharding
from bt_jax.augment import recipes
from bt_jax.data import device
from bt_jax.data.order import epoch_order
from bt_jax.evals import confidence, features, knn, probe, protocols, spectrum
from bt_jax.messages import UserError

pytestmark = pytest.mark.usefixtures("tiny_arch")


@pytest.fixture(scope="module")
def clusters():
    """Features and labels of train and test images. The classes are noisy: accuracy is far from 1, and every vote
    matters."""
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
    predicted = knn.predict(bank, bank_labels, queries, ks=(3, k), temperatures=(9.0, temperature), num_classes=7)[1, 1]
    # A tie in float32 has no defined winner.
    assert (predicted == reference.predict(queries)).mean() > 0.998
    accuracy = knn.top1(bank, bank_labels, queries, labels, k=k, temperature=temperature, num_classes=7)
    assert accuracy == (predicted == labels).mean() and 0.3 < accuracy < 0.95


def test_k_larger_than_the_bank(clusters):
    bank, bank_labels, queries, labels = clusters
    few = knn.top1(bank[:5], bank_labels[:5], queries, labels, k=200, temperature=0.1, num_classes=7)
    assert few == knn.top1(bank[:5], bank_labels[:5], queries, labels, k=5, temperature=0.1, num_classes=7)


@pytest.mark.parametrize("m, k", [(1000, 7), (1001, 250), (64, 64), (50, 1)])
def test_top_k_in_blocks_is_exact(m, k):
    """The values have one decimal, and thus many ties: the largest values must be right, and all indices different."""
    values = np.random.default_rng(0).standard_normal((5, m)).astype(np.float32).round(1)
    largest, index = knn._top_k(jnp.asarray(values), k)
    np.testing.assert_array_equal(largest, np.sort(values)[:, ::-1][:, :k])
    np.testing.assert_array_equal(np.take_along_axis(values, np.asarray(index), 1), largest)
    assert all(len(set(row)) == k for row in np.asarray(index).tolist())


def test_interval_of_an_accuracy():
    """It is near the normal approximation for many images, and never outside of 0 to 1."""
    correct = np.arange(2000) % 5 > 0
    low, high = confidence.interval(correct)
    half = 1.96 * np.sqrt(0.8 * 0.2 / 2000)
    np.testing.assert_allclose([low, high], [0.8 - half, 0.8 + half], atol=1e-3)  # steps of 1/2000
    assert confidence.interval(np.ones(7, bool)) == (1.0, 1.0) and confidence.interval(np.zeros(7, bool)) == (0.0, 0.0)
    narrow = confidence.interval(correct, level=0.5)
    assert low < narrow[0] < 0.8 < narrow[1] < high


def test_probe_is_as_good_as_logistic_regression(clusters):
    features_, labels, test, test_labels = clusters
    reference = LogisticRegression(max_iter=1000).fit(features_, labels).score(test, test_labels)
    accuracy = probe.top1(features_, labels, test, test_labels, num_classes=7)
    assert abs(accuracy - reference) < 0.03  # the deviation for 701 images at 0.7 is 0.017; both see the same images


def test_probe_chooses_on_held_out_training_images(clusters):
    """The chosen pair has the highest accuracy of the table, and does not depend on the test images."""
    features_, labels, test, _ = clusters
    fitted = probe.fit(features_, labels, test, num_classes=7, epochs=3)
    pair = probe.LEARNING_RATES.index(fitted.rate), probe.WEIGHT_DECAYS.index(fitted.decay)
    assert fitted.held_out_top1[pair] == fitted.held_out_top1.max() > fitted.held_out_top1.min()
    again = probe.fit(features_, labels, test[::-1], num_classes=7, epochs=3)
    np.testing.assert_array_equal(again.predicted, fitted.predicted[::-1])


def test_probe_is_independent_of_scale_and_shift(clusters):
    features_, labels, test, test_labels = clusters
    shift = np.linspace(-100, 100, 24, dtype=np.float32)
    moved = probe.top1(1e-3 * features_ + shift, labels, 1e-3 * test + shift, test_labels, num_classes=7)
    plain = probe.top1(features_, labels, test, test_labels, num_classes=7)
    assert abs(moved - plain) < 0.03  # float32 around 100 resolves 1e-5, a hundredth of the deviation


@pytest.mark.parametrize("batch_size", (8, 16, 64))
def test_every_image_counts_once(batch_size):
    """37 images in batches of any size over 8 devices: the features are the same, in order, without padding."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (37, 16, 16, 3), np.uint8), np.arange(37)
    net, recipe, mesh = (
        models.build("tiny", width=0.125, small_images=True),
        recipes.cifar(16),
        sharding.make_mesh(),
    )
    variables = jax.jit(net.init)(jax.random.key(0))
    embed = features.make_embed(net, recipe, mesh)
    batches = device.eval_batches(images, labels, batch_size=batch_size)
    extracted, order = features.extract(embed, variables, batches, mesh)
    view = jax.jit(augment.evaluation_view, static_argnames="recipe")(images, recipe)
    expected = jax.jit(lambda variables, view: net.apply(variables, view, train=False))(variables, view)
    np.testing.assert_array_equal(order, labels)
    tolerance = {"rtol": 1e-3, "atol": 1e-4 * np.abs(expected).max()}  # float32, other batches
    np.testing.assert_allclose(extracted, expected, **tolerance)


@pytest.mark.parametrize("steps, limit, size", [(195, 65, 65), (390, 50, 39), (97, 50, 49), (44, 50, 44), (7, 1, 1)])
def test_dispatch_size(steps, limit, size):
    assert device.dispatch_size(steps, limit) == size


def test_every_epoch_has_its_own_permutation():
    key = jax.random.key(0)
    first, again, second = (np.asarray(epoch_order(key, epoch, 101)) for epoch in (0, 0, 1))
    assert sorted(first) == list(range(101))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()


# Metrics without labels ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tiny_arch):
    net, recipe = models.build(tiny_arch, width=0.125, small_images=True), recipes.cifar(16)
    images = np.random.default_rng(0).integers(0, 256, (37, 16, 16, 3), np.uint8)
    return net, recipe, jax.jit(net.init)(jax.random.key(0)), images


@pytest.mark.parametrize("streamed", [False, True])
def test_spectrum_equals_numpy(small, streamed):
    """37 images in padded batches of 16 over 8 devices, against the features of all images at once.

    In the streamed case, the padding has images of size 0: their crops are NaN, and must not count either.
    """
    net, recipe, variables, images = small
    mesh, key = sharding.make_mesh(), jax.random.key(5)
    accumulate = spectrum.make_accumulate(net, recipe, mesh)
    batches = device.eval_batches(images, None, batch_size=16)
    if streamed:
        batches = [batch | {"size": np.stack([16 * batch["mask"]] * 2, axis=1).astype(np.int32)} for batch in batches]
    values, eigenvalues = spectrum.measure(accumulate, key, variables, batches, mesh, net.feature_dim)

    views = jax.jit(augment.two_views, static_argnames="recipe")(key, images, recipe, ids=jnp.arange(37))
    apply = jax.jit(lambda view: net.apply(variables, view, train=False))
    h = [np.asarray(apply(view), np.float64) for view in views]
    both = np.concatenate(h)
    singular = np.linalg.svd(both, compute_uv=False)
    share = singular / singular.sum()
    np.testing.assert_allclose(values["rank"], np.exp(-(share * np.log(share + 1e-12)).sum()), rtol=5e-3)
    expected = np.linalg.eigvalsh(np.cov(both.T, bias=True))[::-1]
    np.testing.assert_allclose(eigenvalues, expected, rtol=1e-3, atol=1e-5 * expected[0])
    alive = both.std(axis=0) > 1e-3 * both.std(axis=0).mean()
    assert values["dead_dimensions"] == (~alive).sum() < 20  # an untrained ReLU may be 0 for every image
    correlation = np.corrcoef(both.T[alive])
    off = np.abs(correlation[~np.eye(len(correlation), dtype=bool)]).mean()
    np.testing.assert_allclose(values["off_diagonal"], off, rtol=1e-3)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in h]
    np.testing.assert_allclose(values["alignment"], np.square(unit[0] - unit[1]).sum(axis=1).mean(), rtol=1e-3)
    pairs = [(i, j) for start in (0, 16, 32) for i in range(start, min(start + 16, 37)) for j in range(start, i)]
    close = np.mean([np.exp(-2 * np.square(unit[0][i] - unit[0][j]).sum()) for i, j in pairs])
    np.testing.assert_allclose(values["uniformity"], np.log(close), rtol=1e-3)


def moments_of(features_):
    """The moments of features (n, d), with two equal views."""
    n, zero = 2 * len(features_), np.zeros((), np.float32)
    return spectrum.Moments(np.float32(n), 2 * features_.sum(0), 2 * features_.T @ features_, zero, zero, zero)


def test_spectrum_detects_a_collapse():
    rng = np.random.default_rng(0)
    good = rng.standard_normal((4000, 64))
    line = rng.standard_normal((4000, 1)) * rng.standard_normal(64)
    half = good * (np.arange(64) < 32)
    kinds = {"good": good, "line": line, "half": half}
    metrics = {name: spectrum.summarise(moments_of(x))[0] for name, x in kinds.items()}
    assert metrics["good"]["rank"] > 63 and metrics["good"]["off_diagonal"] < 0.02
    assert metrics["line"]["rank"] < 1.1 and metrics["line"]["off_diagonal"] > 0.99
    assert metrics["half"]["dead_dimensions"] == 32 and 30 < metrics["half"]["rank"] < 33
    assert metrics["good"]["spectrum_slope"] < 0.3 < metrics["line"]["spectrum_slope"]


def test_features_that_are_not_finite_have_nan_metrics():
    values, eigenvalues = spectrum.summarise(moments_of(np.full((50, 4), np.nan)))
    assert set(values) == set(spectrum.NAMES) and all(map(np.isnan, values.values())) and np.isnan(eigenvalues).all()


def test_slope_is_the_power():
    ranks = np.arange(1, 257)
    features_ = np.diag(ranks**-0.5) * 16  # covariance close to diag(1 / rank)
    values, _ = spectrum.summarise(moments_of(np.concatenate([features_, -features_])))
    np.testing.assert_allclose(values["spectrum_slope"], 1.0, atol=1e-3)


# Protocols as evaluators ---------------------------------------------------------------------------------------------


class EncoderState:
    """A state with an encoder alone."""

    def encoder(self):
        return {}


def frozen_of(features_, labels, test, test_labels, classes):
    """(`FrozenFeatures` whose encoder returns stored features, list of its batch sizes so far)."""
    calls = []

    def embed(variables, batch):
        calls.append(len(batch["image"]))
        return batch["image"][:, 0, 0]

    def passes(x, y):
        return lambda: device.eval_batches(x[:, None, None].astype(np.float32), y, batch_size=64)

    mesh = sharding.make_mesh()
    frozen = protocols.FrozenFeatures(
        embed, passes(features_, labels), passes(test, test_labels), mesh=mesh, num_classes=classes, check=True
    )
    return frozen, calls


def test_protocols_share_the_features(clusters):
    frozen, calls = frozen_of(*clusters, 7)
    state = EncoderState()
    values = protocols.KNN(frozen, ks=(20, 5), temperatures=(0.1, 0.5)).run(state)
    once = len(calls)
    values |= protocols.LinearProbe(frozen, epochs=3).run(state)
    assert len(calls) == once == 15 + 11  # 900 and 701 images in batches of 64
    bank, bank_labels, queries, labels = clusters
    for k, t in ((20, 0.1), (5, 0.5)):
        expected = knn.top1(bank, bank_labels, queries, labels, k=k, temperature=t, num_classes=7)
        np.testing.assert_allclose(values[f"val/knn_top1_k{k}_t{t}"], expected, atol=2e-3)  # ties have no winner
    assert values["val/knn_top1"] == values["val/knn_top1_k20_t0.1"]
    assert values["val/linear_low"] < values["val/linear_top1"] < values["val/linear_high"]
    protocols.KNN(frozen, ks=(5,)).run(EncoderState())
    assert len(calls) == 2 * once  # another state


def test_no_more_neighbours_vote_than_images_were_read(clusters, capsys):
    """A small folder, or one with unreadable images, is no error."""
    bank, bank_labels, queries, labels = clusters
    knn_ = protocols.KNN(frozen_of(*clusters, 7)[0], ks=(1000, 5, 2000), temperatures=(0.1, 0.5))
    state = EncoderState()
    values = knn_.run(state)
    assert knn_.ks(state) == (900, 5) and set(values) >= {"val/knn_top1_k900_t0.5", "val/knn_top1_k5_t0.1"}
    expected = knn.top1(bank, bank_labels, queries, labels, k=900, temperature=0.1, num_classes=7)
    np.testing.assert_allclose(values["val/knn_top1"], expected, atol=2e-3)
    said = "kNN: all 900 training images vote, because there are fewer than 1000, 2000\n"
    assert capsys.readouterr().out == said  # once


def test_wrong_input_to_protocols(clusters):
    bank, bank_labels, queries, labels = clusters
    few = bank_labels < 6
    with pytest.raises(UserError, match="No training image has these labels of held-out images: 6[.]"):
        protocols.KNN(frozen_of(bank[few], bank_labels[few], queries, labels, 7)[0], ks=(5,)).run(EncoderState())
    targets = np.ones((900, 3), np.int8)
    with pytest.raises(UserError, match="900 training and 701 held-out images are readable, of 900 and 5"):
        protocols.SVM(frozen_of(*clusters, 0)[0], targets, targets[:5]).run(EncoderState())


def test_intervals_are_of_the_main_result(clusters, monkeypatch):
    """The main result of kNN is that of the first k and temperature; that of the probe is on the test images."""
    *_, labels = clusters
    correct = np.random.default_rng(1).uniform(size=(2, 2, len(labels))) < np.array([[[0.9], [0.7]], [[0.5], [0.3]]])
    monkeypatch.setattr(knn, "predict", lambda *_, **__: np.where(correct, labels, -2))
    frozen, _ = frozen_of(*clusters, 7)
    state = EncoderState()
    values = protocols.KNN(frozen, ks=(20, 5), temperatures=(0.1, 0.5)).run(state)
    assert (values["val/knn_low"], values["val/knn_high"]) == confidence.interval(correct[0, 0])
    accuracies = {name: values[f"val/knn_top1_{name}"] for name in ("k20_t0.1", "k20_t0.5", "k5_t0.1", "k5_t0.5")}
    np.testing.assert_allclose([*accuracies.values()], correct.mean(axis=-1).ravel())
    assert values["val/knn_top1"] == accuracies["k20_t0.1"]
    assert set(protocols.KNN(frozen, ks=(20,)).run(state)) == {"val/knn_top1"}

    fitted = probe.Probe(np.where(correct[0, 1], labels, -2), 0.1, 0.0, np.ones((5, 3)))
    monkeypatch.setattr(probe, "fit", lambda *_, **__: fitted)
    values = protocols.LinearProbe(frozen).run(state)
    assert values["val/linear_top1"] == correct[0, 1].mean()
    assert (values["val/linear_low"], values["val/linear_high"]) == confidence.interval(correct[0, 1])


def test_online_probe_uses_the_weights_of_the_state(clusters):
    """It applies kernel and bias to held-out images."""
    *_, queries, labels = clusters
    rng = np.random.default_rng(0)
    kernel, bias = rng.standard_normal((24, 7)), 9 * rng.standard_normal(7)
    state = EncoderState()
    state.params = {"probe": {"kernel": kernel, "bias": bias}}
    values = protocols.OnlineProbe(frozen_of(*clusters, 7)[0]).run(state)
    assert values == {"val/online_top1": ((queries @ kernel + bias).argmax(axis=1) == labels).mean()}
    assert values["val/online_top1"] != ((queries @ kernel).argmax(axis=1) == labels).mean()


def test_weight_decay_of_the_probe_shrinks_its_kernel(clusters):
    x, labels = map(jnp.asarray, clusters[:2])
    decays = np.linspace(0, 0.5, 15)
    options = {"num_classes": 7, "epochs": 3}
    classifiers = probe._fit(jax.random.key(0), x[:810], labels[:810], np.full(15, 0.3), decays, **options)
    assert (np.diff(np.linalg.norm(classifiers["kernel"].reshape(15, -1), axis=1)) < 0).all()


def test_thumbnails_are_the_middle_of_the_image_without_its_padding():
    canvas = np.zeros((8, 10, 3), np.uint8)
    canvas[:4, :10] = np.arange(10)[:, None]
    mesh = sharding.make_mesh(jax.devices()[:1])

    def embed(variables, batch):
        return np.zeros((1, 2), np.float32)

    def thumbnail(image, size, side):
        batch = {"image": image[None], "size": np.array([size]), "mask": np.array([True])}
        _, thumbnails, _ = features.extract_with_thumbnails(embed, {}, [batch], mesh, side=side)
        return thumbnails[0]

    assert thumbnail(canvas, (4, 10), 64).shape == (4, 4, 3)
    assert thumbnail(canvas, (4, 10), 64)[0, :, 0].tolist() == [3, 4, 5, 6]
    assert thumbnail(canvas.transpose(1, 0, 2), (10, 4), 64)[:, 0, 0].tolist() == [3, 4, 5, 6]
    assert thumbnail(canvas, (4, 10), 2)[0, :, 0].tolist() == [4, 6]  # means of two: 3.5 and 5.5, rounded up
