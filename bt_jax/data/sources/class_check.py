"""Whether training and held-out images are of the same classes: no classifier knows a class that it has never seen."""

from typing import NamedTuple

import numpy as np

from bt_jax.data.sources.base import Source
from bt_jax.data.sources.selection import MIXED, unmixed

NAMED = 8  # classes that a line names


class Unlike(NamedTuple):
    """How two splits differ, and a cure where both are cut from one; else "", as other splits may be meant to."""

    cause: str
    cure: str


def compare(source: Source, train: str, val: str, *, read: bool = False) -> Unlike | None:
    """Compares the classes of two splits, whole or cut. None if they have the same, or it is not known.

    Classes of the training images that the held-out ones lack count only where both are cut from one split.

    Args:
      train: several joined by "+", or one.
      val: "": there are no held-out images.
      read: whether records may be read for their labels, where both are cut from one split.
    """
    if not val:
        return None
    parts = [source.span(part) for part in train.split("+")]
    held_out = source.span(val)
    one = unmixed(source, held_out.base) in {unmixed(source, part.base) for part in parts}
    labels = [_labels(source, span, read and one) for span in (*parts, held_out)]
    if any(each is None for each in labels):
        return None
    trained, (classes, counts) = np.unique(np.concatenate(labels[:-1])), np.unique(labels[-1], return_counts=True)
    unknown = ~np.isin(classes, trained)
    if unknown.any():
        names, number = _names(source, classes[unknown]), counts[unknown].sum()
        images = f"1 image of {val} is" if number == 1 else f"{number} images of {val} are"
        cause = f"{images} of classes that no image of {train} has: {names}"
        return Unlike(cause, _cure(train, val) if one else "")
    missing = trained[~np.isin(trained, classes)]
    if one and len(missing):
        names = _names(source, missing)
        return Unlike(f"{val} has no image of {len(missing)} of the {len(trained)} classes of {train}: {names}", "")
    return None


def _labels(source: Source, span, read: bool) -> np.ndarray | None:
    """The labels of a span's images, without those of unreadable ones; None where there are none, or none at hand."""
    if not source.labelled(span.base):
        return None
    labels = source.labels_at_hand(span.base)
    if labels is None and read:
        labels = source.labels(span.base)
    if labels is None:
        return None
    labels = labels[span.start : span.stop]
    return labels[labels >= 0]


def _cure(train: str, val: str) -> str:
    """What to name instead: the same cuts, with a part of every class."""
    if MIXED in train + val:
        return "Make the slices larger, or hold out a split of its own."
    mixed = [split.replace("[", f"{MIXED}[", 1) if "[" in split else split + MIXED for split in (train, val)]
    return f'Name "{mixed[0]}" and "{mixed[1]}", which hold a part of every class, or a held-out split of its own.'


def _names(source: Source, labels: np.ndarray) -> str:
    known = len(source.class_names)
    names = [source.class_names[label] if label < known else str(label) for label in labels[:NAMED]]
    return ", ".join([*names, *[f"and {len(labels) - NAMED} more"] * (len(labels) > NAMED)])
