"""Splits made of others: a share of a split, of each class the same; or several splits as one."""

from collections.abc import Sequence

import numpy as np

from bt_jax.data.sources.base import Source
from bt_jax.messages import UserError


class Selection(Source):
    """All splits of a source, and one more.

    Args:
      name: of the new split.
      parts: (split of the source, ids in it), one after the other.
    """

    def __init__(self, source: Source, name: str, parts: Sequence[tuple[str, np.ndarray]]):
        self._source, self._split = source, name
        self._parts = [base for base, _ in parts]
        self._part = np.repeat(np.arange(len(parts)), [len(ids) for _, ids in parts])
        self._ids = np.concatenate([ids for _, ids in parts])
        self.name, self.num_classes, self.class_names = source.name, source.num_classes, source.class_names
        self.splits = source.splits | {name: len(self._ids)}

    def labelled(self, base):
        bases = self._parts if base == self._split else [base]
        return all(self._source.labelled(base) for base in bases)

    def random_access(self, base):
        bases = self._parts if base == self._split else [base]
        return all(self._source.random_access(base) for base in bases)

    def read(self, base, ids):
        if base != self._split:
            return self._source.read(base, ids)
        return [self._source.read(self._parts[self._part[i]], [int(self._ids[i])])[0] for i in ids]

    def labels(self, base):
        return self._source.labels(base) if base != self._split else super().labels(base)

    def targets(self, base):
        if base != self._split:
            return self._source.targets(base)
        found = {part: self._source.targets(part) for part in set(self._parts)}
        if any(targets is None for targets in found.values()):
            return None
        pairs = zip(self._part, self._ids, strict=True)
        return np.stack([found[self._parts[part]][number] for part, number in pairs])

    def where(self, base, number):
        if base != self._split:
            return self._source.where(base, number)
        return self._source.where(self._parts[self._part[number]], int(self._ids[number]))


def joined(source: Source, splits: str, name: str = "joined") -> Selection:
    """Splits such as "train+validation[:50%]" one after the other."""
    spans = [source.span(split) for split in splits.split("+")]
    return Selection(source, name, [(span.base, np.arange(span.start, span.stop)) for span in spans])


def share(source: Source, split: str, fraction: float, *, seed: int = 0, name: str = "share") -> Selection:
    """A share of a split, which may be cut: of each class's images so many, at least one, drawn by the seed.

    Raises:
      UserError: a split without labels, a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UserError(f"A share of {fraction:g} of the training images", "Give more than 0 and at most 1.")
    span = source.span(split)
    if not source.labelled(span.base):
        raise UserError(f"{source.name}, split {split!r}, carries no labels to draw by", "Use all of it.")
    labels, rng = source.labels(span.base)[span.start : span.stop], np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        chosen.append(rng.permutation(members)[: max(round(fraction * len(members)), 1)])
    return Selection(source, name, [(span.base, span.start + np.sort(np.concatenate(chosen)))])
