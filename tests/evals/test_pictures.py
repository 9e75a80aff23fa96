"""The arrays behind the pictures: against plain NumPy and scikit-learn, reproducible, and for unusual input."""

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import NearestNeighbors

from bt_jax.evals import pictures


@pytest.fixture
def numbers() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def blobs(numbers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features float32 (60, 16) around three directions, images whose pixels equal their number, and labels."""
    labels = np.arange(60) % 3
    features = 5 * np.eye(16)[labels] + 0.3 * numbers.normal(size=(60, 16))
    images = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None, None], (60, 8, 8, 3))
    return features.astype(np.float32), images, labels


# Cross-correlation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [7, 1100])  # less and more than a block of rows, and no multiple of it
def test_histogram_counts_every_value_off_the_diagonal(numbers, d):
    before, after = numbers.uniform(-1.3, 1.3, (2, d, d)).astype(np.float32)
    arrays = pictures.off_diagonal_histograms(before, after)
    off = ~np.eye(d, dtype=bool)
    for name, c in (("off_before", before), ("off_after", after)):
        counts, edges = np.histogram(np.clip(c[off], -1, 1), bins=81, range=(-1, 1))
        np.testing.assert_array_equal(arrays[name], counts)
        np.testing.assert_allclose(arrays["off_edges"], edges)
        assert arrays[name].sum() == d * (d - 1) and arrays[name].dtype == np.int64


def test_histogram_of_one_matrix_and_of_nan(numbers):
    c = numbers.uniform(-1, 1, (9, 9))
    c[2, 3] = np.nan
    arrays = pictures.off_diagonal_histograms(None, c, bins=5)
    assert sorted(arrays) == ["off_after", "off_edges"] and arrays["off_edges"].shape == (6,)
    assert arrays["off_after"].sum() == 9 * 8 - 1


@pytest.mark.parametrize(("d", "count"), [(6, 12), (4, 12), (700, 40)])
def test_redundant_pairs_are_the_largest(numbers, d, count):
    c = numbers.normal(size=(d, d)).astype(np.float32)
    arrays = pictures.redundant_pairs(c, count)
    both = (c + c.T) / 2
    largest = sorted((-abs(both[i, j]), i, j) for i in range(d) for j in range(i + 1, d))[:count]
    np.testing.assert_array_equal(arrays["redundant_index"], [(i, j) for _, i, j in largest])
    np.testing.assert_allclose(arrays["redundant_value"], [both[i, j] for _, i, j in largest], rtol=1e-6)
    assert arrays["redundant_value"].dtype == np.float32 and arrays["redundant_index"].dtype == np.int64
    assert (arrays["redundant_value"] < 0).any()  # the values are signed


def test_redundant_pairs_leave_out_nan(numbers):
    c = np.full((5, 5), np.nan)
    c[1, 3] = c[3, 1] = -0.5
    arrays = pictures.redundant_pairs(c)
    assert arrays["redundant_index"].tolist() == [[1, 3]] and arrays["redundant_value"].tolist() == [-0.5]


# Map ----------------------------------------------------------------------------------------------------------------


def test_map_is_reproducible_and_preserves_neighbours(blobs):
    features, images, labels = blobs
    arrays = pictures.embedding_map(features, images, labels)
    again = pictures.embedding_map(features.copy(), images, labels)
    np.testing.assert_array_equal(arrays["map_xy"], again["map_xy"])
    xy = arrays["map_xy"]
    assert xy.dtype == np.float32 and xy.min(axis=0).tolist() == [0, 0] and xy.max(axis=0).tolist() == [1, 1]
    _, nearest = NearestNeighbors(n_neighbors=2).fit(xy).kneighbors(xy)
    assert (labels[nearest[:, 1]] == labels).all()
    np.testing.assert_array_equal(arrays["map_labels"], labels)
    assert arrays["map_labels"].dtype == np.int32 and arrays["map_images"].shape == (60, 8, 8, 3)


def test_map_ignores_the_length_of_features(blobs):
    features, images, _ = blobs
    longer = features * 2.0 ** np.arange(-3, 3).repeat(10)[:, None].astype(np.float32)  # exact in float32
    one, other = (pictures.embedding_map(f[:9], images[:9])["map_xy"] for f in (features, longer))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_map_of_many_images_takes_an_even_subset(blobs):
    features, images, labels = blobs
    arrays = pictures.embedding_map(features, images, labels, limit=21)
    chosen = np.linspace(0, 59, 21).astype(int)
    np.testing.assert_array_equal(arrays["map_images"][:, 0, 0, 0], chosen)
    np.testing.assert_array_equal(arrays["map_labels"], labels[chosen])
    assert arrays["map_xy"].shape == (21, 2)


@pytest.mark.filterwarnings("error")  # NumPy warns if t-SNE divides by a deviation of 0
@pytest.mark.parametrize("n", [1, 2, 9, 10, 11])
@pytest.mark.parametrize("kind", ["good", "equal", "nan"])
def test_map_of_few_or_collapsed_features(blobs, n, kind):
    features = {"good": blobs[0], "equal": np.ones((60, 16)), "nan": np.full((60, 16), np.nan)}[kind][:n]
    arrays = pictures.embedding_map(features, blobs[1][:n])
    assert arrays["map_xy"].shape == (n, 2) and "map_labels" not in arrays
    assert ((arrays["map_xy"] >= 0) & (arrays["map_xy"] <= 1)).all()
    if kind != "good":
        assert (arrays["map_xy"] == 0.5).all()


# Neighbours ---------------------------------------------------------------------------------------------------------


def test_neighbours_equal_those_of_scikit_learn(numbers, blobs):
    features = numbers.normal(size=(60, 16)) + 1
    arrays = pictures.neighbours(features, blobs[1], queries=7, k=4)
    queries = np.linspace(0, 59, 7).astype(int)
    distance, index = NearestNeighbors(n_neighbors=5, metric="cosine").fit(features).kneighbors(features[queries])
    assert (index[:, 0] == queries).all()
    np.testing.assert_array_equal(arrays["neighbour_images"][:, :, 0, 0, 0], index)  # the pixels of image i are i
    np.testing.assert_allclose(arrays["neighbour_similarity"], 1 - distance[:, 1:], atol=1e-6)
    assert arrays["neighbour_similarity"].dtype == np.float32


def test_query_is_not_its_own_neighbour_even_among_copies(blobs):
    arrays = pictures.neighbours(np.ones((4, 3)), blobs[1][:4], queries=4, k=9)
    rows = arrays["neighbour_images"][:, :, 0, 0, 0]
    assert rows.shape == (4, 4) and [sorted(row) for row in rows.tolist()] == [[0, 1, 2, 3]] * 4
    assert rows[:, 0].tolist() == [0, 1, 2, 3]
    assert pictures.neighbours(np.ones((1, 3)), blobs[1][:1]) == {}


# Confusion and thumbnails -------------------------------------------------------------------------------------------


def test_confusion_equals_that_of_scikit_learn(numbers):
    labels, predicted = numbers.integers(0, 4, 200), numbers.integers(0, 5, 200)
    labels[::7] = -1
    counts = pictures.confusion(labels, predicted, 5)["confusion"]
    known = labels >= 0
    np.testing.assert_array_equal(counts, confusion_matrix(labels[known], predicted[known], labels=range(5)))
    assert counts.dtype == np.int64 and counts[4].sum() == 0 and (counts != counts.T).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_thumbnails_are_the_middle_square(numbers, channels):
    images = numbers.integers(0, 256, (3, 40, 60, channels)).astype(np.uint8)
    small = pictures.thumbnails(images, 32)
    assert small.shape == (3, 32, 32, 3) and small.dtype == np.uint8
    middle = Image.fromarray(np.broadcast_to(images[1, :, 10:50], (40, 40, 3)).copy())
    np.testing.assert_array_equal(small[1], middle.resize((32, 32), Image.Resampling.BOX))
    np.testing.assert_array_equal(pictures.thumbnails(images[:, :20, :20], 32)[..., :1], images[:, :20, :20, :1])
