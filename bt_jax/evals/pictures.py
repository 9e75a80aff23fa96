"""Computes the arrays behind the pictures of the report. Each function returns entries of pictures.npz."""

import numpy as np
from PIL import Image

from bt_jax.data.sources.base import evenly_spaced
from bt_jax.shapes import Float, Int, UInt8

ROWS = 512  # of a correlation matrix at a time: a copy of (8192, 8192) float32 would take 268 MB
MIN_TSNE_IMAGES = 10  # fewer have too few neighbours for t-SNE; the map has their principal components instead
TSNE_INPUT = 50  # number of principal components as input of t-SNE, which scikit-learn's manual recommends
MAP_IMAGES = 600  # the number of thumbnails that fit on a screen
PERPLEXITY = 30  # scikit-learn's default
NEIGHBOUR_PIXELS = 64  # largest side of a thumbnail in a row of neighbours


# Cross-correlation --------------------------------------------------------------------------------------------------


def off_diagonal_histograms(
    before: Float[np.ndarray, "d d"] | None, after: Float[np.ndarray, "d d"] | None, bins: int = 81
) -> dict[str, np.ndarray]:
    """Histograms of the values off the diagonal of (d, d) cross-correlation matrices, over [-1, 1].

    Returns:
      {"off_edges": float64 (bins + 1,), "off_before": int64 (bins,), "off_after": int64 (bins,)}. Values outside of
      [-1, 1] count in the outermost bins; NaN do not count. A matrix that is None has no entry.
    """
    edges = np.linspace(-1, 1, bins + 1)
    histograms = {"off_edges": edges}
    for name, c in (("off_before", before), ("off_after", after)):
        if c is not None:
            blocks = [c[start : start + ROWS] for start in range(0, len(c), ROWS)]
            histograms[name] = sum(_counts(block, edges) for block in blocks) - _counts(np.diagonal(c), edges)
    return histograms


def _counts(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(np.clip(values, -1, 1), bins=len(edges) - 1, range=(-1, 1))[0].astype(np.int64)


def redundant_pairs(c: Float[np.ndarray, "d d"], count: int = 12) -> dict[str, np.ndarray]:
    """The pairs of features with the largest correlation.

    Args:
      c: (d, d) cross-correlation. c[i, j] and c[j, i] measure the same pair: their mean is its correlation.

    Returns:
      {"redundant_index": int64 (m, 2), pairs i < j, "redundant_value": float32 (m,), their signed correlations}, sorted
      by absolute value, largest first. m is `count`, or the number of finite pairs if that is less.
    """
    index, values = np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    for start in range(0, len(c), ROWS):
        block = (c[start : start + ROWS, start:].astype(np.float32) + c[start:, start : start + ROWS].T) / 2
        size = np.where(np.isfinite(block) & np.triu(np.ones(block.shape, bool), 1), np.abs(block), -1).ravel()
        best = np.argpartition(size, -min(count, len(size)))[-min(count, len(size)) :]
        best = best[size[best] >= 0]
        rows, columns = np.unravel_index(best, block.shape)
        index = np.concatenate([index, np.stack([rows + start, columns + start], axis=1)])
        values = np.concatenate([values, block[rows, columns].astype(np.float32)])
        order = np.lexsort((index[:, 1], index[:, 0], -np.abs(values)))[:count]
        index, values = index[order], values[order]
    return {"redundant_index": index, "redundant_value": values}


# Features -----------------------------------------------------------------------------------------------------------


def embedding_map(
    features: Float[np.ndarray, "n d"],
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"] | None = None,
    seed: int = 0,
    limit: int = MAP_IMAGES,
    thumbnail: int = 32,
) -> dict[str, np.ndarray]:
    """A map of images on which images with similar features lie close together (t-SNE).

    Args:
      features: (n, d).
      images: uint8 (n, h, w, c), c 1 or 3.
      labels: int (n,) or None.
      limit: number of images on the map, evenly spaced among the n.
      thumbnail: largest side of a thumbnail, in pixels.

    Returns:
      {"map_xy": float32 (m, 2) in [0, 1], "map_images": uint8 (m, s, s, 3)}, with labels also
      {"map_labels": int32 (m,)}. Equal input gives equal bytes.
    """
    chosen = evenly_spaced(len(features), limit)
    xy = _project_to_plane(_unit_rows(np.asarray(features)[chosen]), seed)
    reach = np.ptp(xy, axis=0)
    # The features of a collapsed encoder are all one point. Their images are placed in the middle.
    xy = np.where(reach > 1e-6, (xy - xy.min(axis=0)) / np.maximum(reach, 1e-6), 0.5)
    arrays = {"map_xy": xy.astype(np.float32), "map_images": thumbnails(np.asarray(images)[chosen], thumbnail)}
    return arrays if labels is None else arrays | {"map_labels": np.asarray(labels)[chosen].astype(np.int32)}


def _project_to_plane(unit: np.ndarray, seed: int) -> np.ndarray:
    """Maps unit features (n, d) to float64 (n, 2)."""
    centred = unit - unit.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    components = (u * s)[:, :TSNE_INPUT]
    components = np.pad(components, ((0, 0), (0, max(0, 2 - components.shape[1]))))
    if len(unit) < MIN_TSNE_IMAGES or components[:, 0].std() < 1e-6:
        return components[:, :2]
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(PERPLEXITY, (len(unit) - 1) / 3)
    with threadpool_limits(limits=1):  # threads would change the order of sums, and t-SNE amplifies the last bit
        return TSNE(init="pca", random_state=seed, perplexity=perplexity).fit_transform(components).astype(np.float64)


def map_and_neighbours(
    features: Float[np.ndarray, "n d"],
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"] | None = None,
) -> dict[str, np.ndarray]:
    """`embedding_map` and `neighbours` of the same images."""
    return embedding_map(features, images, labels) | neighbours(features, images)


def neighbours(
    features: Float[np.ndarray, "n d"], images: UInt8[np.ndarray, "n h w c"], queries: int = 10, k: int = 6
) -> dict[str, np.ndarray]:
    """The k nearest images, by cosine similarity of the features, of evenly spaced queries.

    Args:
      features: (n, d).
      images: uint8 (n, h, w, c), c 1 or 3.
      queries: number of queries q.

    Returns:
      {"neighbour_images": uint8 (q, 1 + k, s, s, 3), the query first, "neighbour_similarity": float32 (q, k)}. A query
      is no neighbour of itself, so that k is capped at n - 1. With one image, the result is {}.
    """
    if len(features) < 2:
        return {}
    unit, chosen = _unit_rows(features), evenly_spaced(len(features), queries)
    similarity = unit[chosen] @ unit.T
    similarity[np.arange(len(chosen)), chosen] = -np.inf
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : min(k, len(unit) - 1)]
    rows = np.concatenate([chosen[:, None], nearest], axis=1)
    small = thumbnails(np.asarray(images)[rows.ravel()], NEIGHBOUR_PIXELS)
    return {
        "neighbour_images": small.reshape(*rows.shape, *small.shape[1:]),
        "neighbour_similarity": np.take_along_axis(similarity, nearest, axis=1).astype(np.float32),
    }


def confusion(
    labels: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], num_classes: int
) -> dict[str, np.ndarray]:
    """The confusion matrix {"confusion": int64 (num_classes, num_classes)}: rows are true classes, columns predictions.

    Args:
      labels: int (n,); images with the label -1 do not count.
      predicted: int (n,).
    """
    labels, predicted = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    known = labels >= 0
    flat = np.bincount(labels[known] * num_classes + predicted[known], minlength=num_classes**2)
    return {"confusion": flat.reshape(num_classes, num_classes).astype(np.int64)}


def thumbnails(images: UInt8[np.ndarray, "n h w c"], max_side: int) -> UInt8[np.ndarray, "n s s 3"]:
    """The `thumbnail` of each image, with three channels."""
    small = np.stack([thumbnail(image, max_side) for image in images])
    return np.repeat(small, 3, axis=3) if small.shape[3] == 1 else small


def thumbnail(image: UInt8[np.ndarray, "h w c"], max_side: int) -> UInt8[np.ndarray, "s s c"]:
    """The middle square of uint8 (h, w, c), c 1 or 3, scaled down to (s, s, c), s <= max_side."""
    short = min(image.shape[:2])
    top, left = ((side - short) // 2 for side in image.shape[:2])
    square = image[top : top + short, left : left + short]
    if short <= max_side:
        return square.copy()  # a view would keep the whole batch in memory
    small = Image.fromarray(square.squeeze()).resize((max_side, max_side), Image.Resampling.BOX)
    return np.asarray(small).reshape(max_side, max_side, -1)


def _unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows of unit length, float64. NaN and infinities of a diverged run count as 0."""
    features = np.nan_to_num(np.asarray(features, np.float64), nan=0, posinf=0, neginf=0)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
