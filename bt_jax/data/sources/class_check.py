"""Checks that training and held-out images have the same classes: no classifier predicts a class it never saw."""

from typing import NamedTuple

import numpy as np

from bt_jax.data.sources.base import Source
from bt_jax.data.sources.selection import MIXED, unmixed

NAMED = 8  # classes that a line names


class Unlike(NamedTuple):
    """The difference of the classes of two splits, and a fix.

    The fix is "" unless both are slices of one split: different splits may have different classes on purpose.
    """

    cause: str
    fix: str


def compare(source: Source, train: str, val: str, *, read: bool = False) -> Unlike | None:
    """Compares the classes of two splits or slices. None if the classes are equal or unknown.

    Training classes that the held-out images lack are reported only if both are slices of one split.

    Args:
      train: one split, or several joined by "+".
      val: "": there are no held-out images.
      read: True: read records for their labels if both are slices of one split.
    """
    if not val:
        return None
    parts = [source.span(part) for part in train.split("+")]
    held_out = source.span(val)
    one = unmixed(source, held_out.base) in {unmixed(source, part.base) for part in parts}
    labels = [_labels(source, span, read and one) for span in (*parts, held_out)]
    if any(part is None for part in labels):
        return None
    trained, (classes, counts) = np.unique(np.concatenate(labels[:-1])), np.unique(labels[-1], return_counts=True)
    unknown = ~np.isin(classes, trained)
    if unknown.any():
        names, number = _names(source, classes[unknown]), counts[unknown].sum()
        images = f"1 image of {val} is" if number == 1 else f"{number} images of {val} are"
        cause = f"{images} of classes that no image of {train} has: {names}"
        return Unlike(cause, _fix(train, val) if one else "")
    missing = trained[~np.isin(trained, classes)]
    if one and len(missing):
        names = _names(source, missing)
        return Unlike(f"{val} has no image of {len(missing)} of the {len(trained)} classes of {train}: {names}", "")
    return None


def _labels(source: Source, span, read: bool) -> np.ndarray | None:
    """The labels of the readable images of a span; None if there are none, or if reading them is not allowed."""
    if not source.labelled(span.base):
        return None
    labels = source.labels_at_hand(span.base)
    if labels is None and read:
        labels = source.labels(span.base)
    if labels is None:
        return None
    labels = labels[span.start : span.stop]
    return labels[labels >= 0]


def _fix(train: str, val: str) -> str:
    """The advice to name the same slices with a part of every class."""
    if MIXED in train + val:
        return "Make the slices larger, or use a separate held-out split."
    mixed = [split.replace("[", f"{MIXED}[", 1) if "[" in split else split + MIXED for split in (train, val)]
    return f'Name "{mixed[0]}" and "{mixed[1]}", which hold a part of every class, or use a separate held-out split.'


def _names(source: Source, labels: np.ndarray) -> str:
    known = len(source.class_names)
    names = [source.class_names[label] if label < known else str(label) for label in labels[:NAMED]]
    return ", ".join([*names, *[f"and {len(labels) - NAMED} more"] * (len(labels) > NAMED)])
