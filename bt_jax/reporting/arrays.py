"""What each array of pictures.npz must look like to be drawn; evals.pictures says what it holds."""

from collections.abc import Callable

import numpy as np


def is_matrix(a: np.ndarray) -> bool:
    return a.ndim == 2 and a.shape[0] == a.shape[1] > 1 and a.dtype.kind == "f"


def is_images(a: np.ndarray) -> bool:
    return a.ndim == 4 and a.shape[-1] == 3 and a.dtype == np.uint8 and a.size > 0


def is_counts(a: np.ndarray) -> bool:
    return a.ndim == 1 and a.size > 0 and a.dtype.kind in "iu" and bool((a >= 0).all())


def is_edges(a: np.ndarray) -> bool:
    return a.ndim == 1 and a.size > 1 and a.dtype.kind == "f" and bool((np.diff(a) > 0).all())


def is_floats(a: np.ndarray) -> bool:
    return a.ndim == 1 and a.size > 0 and a.dtype.kind == "f"


def is_integers(a: np.ndarray) -> bool:
    return a.ndim == 1 and a.size > 0 and a.dtype.kind in "iu"


CHECKS: dict[str, Callable[[np.ndarray], bool]] = {
    "c_before": is_matrix,
    "c_after": is_matrix,
    "view1": is_images,
    "view2": is_images,
    "originals": is_images,
    "c_steps": is_integers,
    "c_over_time": lambda a: a.ndim == 3 and a.shape[1] == a.shape[2] > 1 and a.size > 0 and a.dtype.kind == "f",
    "off_edges": is_edges,
    "off_before": is_counts,
    "off_after": is_counts,
    "redundant_index": lambda a: a.ndim == 2 and a.shape[1] == 2 and a.size > 0 and a.dtype.kind in "iu",
    "redundant_value": is_floats,
    "spectrum_trained": is_floats,
    "spectrum_untrained": is_floats,
    "map_xy": lambda a: a.ndim == 2 and a.shape[1] == 2 and a.dtype.kind == "f" and bool(((a >= 0) & (a <= 1)).all()),
    "map_images": lambda a: is_images(a) and a.shape[1] == a.shape[2],
    "map_labels": is_integers,
    "neighbour_images": lambda a: a.ndim == 5 and a.shape[1] > 1 and a.size > 0 and is_images(a[0]),
    "neighbour_similarity": lambda a: a.ndim == 2 and a.size > 0 and a.dtype.kind == "f",
    "confusion": lambda a: a.ndim == 2 and a.shape[0] == a.shape[1] > 1 and is_counts(a.ravel()),
    "class_names": lambda a: a.ndim == 1 and a.dtype.kind == "U",
}
# (array, the one it belongs to, the shape that the second asks of the first)
PARTNERS: tuple[tuple[str, str, Callable[[np.ndarray], tuple]], ...] = (
    ("off_before", "off_edges", lambda edges: (len(edges) - 1,)),
    ("off_after", "off_edges", lambda edges: (len(edges) - 1,)),
    ("redundant_value", "redundant_index", lambda index: (len(index),)),
    ("c_steps", "c_over_time", lambda maps: (len(maps),)),
    ("map_xy", "map_images", lambda images: (len(images), 2)),
    ("map_labels", "map_images", lambda images: (len(images),)),
    ("neighbour_similarity", "neighbour_images", lambda images: (len(images), images.shape[1] - 1)),
)


def checked(arrays: dict[str, np.ndarray], why: list[str]) -> dict[str, np.ndarray]:
    """The arrays that can be drawn; a sentence for each other one goes into `why`."""
    good = {}
    for name, array in arrays.items():
        if name not in CHECKS:
            why.append(f"{name} of pictures.npz is not known here: not drawn.")
        elif CHECKS[name](array):
            good[name] = array
        else:
            why.append(f"{name} of pictures.npz has shape {array.shape} and type {array.dtype}: not drawn.")
    for name, partner, shape in PARTNERS:
        if name in good and partner in good and good[name].shape != shape(good[partner]):
            why.append(
                f"{name} of pictures.npz has shape {good[name].shape} and does not fit {partner} of shape"
                f" {good[partner].shape}: not drawn."
            )
            del good[name]
    return good
