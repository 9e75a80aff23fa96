"""Derived splits: a class-balanced fraction of one split, several splits as one, or a split in mixed class order."""

from collections.abc import Iterable, Sequence

import numpy as np

from bt_jax.data.sources.base import Source
from bt_jax.messages import UserError


class Selection(Source):
    """All splits of a source, and one new split that is made of them.

    Args:
      name: name of the new split.
      parts: its images in order, as (split of the source, ids in it).
    """

    def __init__(self, source: Source, name: str, parts: Sequence[tuple[str, np.ndarray]]):
        self._source, self._split = source, name
        self._parts = [base for base, _ in parts]
        self._part = np.repeat(np.arange(len(parts)), [len(ids) for _, ids in parts])
        self._ids = np.concatenate([ids for _, ids in parts])
        self.name, self.num_classes, self.class_names = source.name, source.num_classes, source.class_names
        self.splits = source.splits | {name: len(self._ids)}
        self.kind, self.upright = source.kind, source.upright

    def labelled(self, base):
        return all(self._source.labelled(base) for base in self._bases(base))

    def random_access(self, base):
        return all(self._source.random_access(base) for base in self._bases(base))

    def _bases(self, base: str) -> list[str]:
        """The splits of the source that a split is made of."""
        return self._parts if base == self._split else [base]

    def read(self, base, ids):
        if base != self._split:
            return self._source.read(base, ids)
        return [self._source.read(self._parts[self._part[i]], [int(self._ids[i])])[0] for i in ids]

    def labels(self, base):
        if base != self._split:
            return self._source.labels(base)
        labels = np.empty(len(self._ids), np.int32)
        for number, part in enumerate(self._parts):
            rows = self._part == number
            labels[rows] = self._source.labels(part)[self._ids[rows]]
        return labels

    def _forget_labels(self):
        self._source = self._source.without_labels()

    def labels_at_hand(self, base):
        known = all(self._source.labels_at_hand(base) is not None for base in self._bases(base))
        return self.labels(base) if known else None

    def targets(self, base):
        if base != self._split:
            return self._source.targets(base)
        by_part = {part: self._source.targets(part) for part in set(self._parts)}
        if any(targets is None for targets in by_part.values()):
            return None
        pairs = zip(self._part, self._ids, strict=True)
        return np.stack([by_part[self._parts[part]][number] for part, number in pairs])

    def digest(self, base):
        return self._source.digest(base) if base != self._split else ""

    def as_in_0_1_0(self):
        """The original source, without the new split."""
        return self._source.as_in_0_1_0()

    def originals(self, base, ids):
        if base != self._split:
            return self._source.originals(base, ids)
        found: dict[str, list[np.ndarray]] = {}
        for number, part in enumerate(self._parts):
            for original, its_ids in self._source.originals(part, self._ids[ids[self._part[ids] == number]]).items():
                found.setdefault(original, []).append(its_ids)
        return {original: np.concatenate(parts) for original, parts in found.items()}

    def where(self, base, number):
        return self._source.where(*self._origin(base, number))

    def file(self, base, number):
        return self._source.file(*self._origin(base, number))

    def _origin(self, base: str, number: int) -> tuple[str, int]:
        """Split and id of an image in the source."""
        return (base, number) if base != self._split else (self._parts[self._part[number]], int(self._ids[number]))


MIXED = ".mixed"


def with_mixed(source: Source, splits: Iterable[str]) -> Source:
    """Adds the split "S.mixed" to a source for each name of that form in `splits`, such as "train.mixed[:90%]".

    "S.mixed" holds the images of S in another order, and its ids are positions in that order. Classes alternate in
    proportion to their sizes, and each class keeps its order, so a slice holds the same part of every class. Without
    labels the order is that of S.

    Raises:
      UserError: the storage of S is fast only in sequence.
    """
    for split in splits:
        name = split.partition("[")[0].strip()
        base = name.removesuffix(MIXED)
        if name not in source.splits and name != base and base in source.splits:
            if not source.random_access(base):
                raise UserError(
                    f"{source.name} can only be read in sequence from its storage, but {name!r} is"
                    " read in another order",
                    f"Name slices of {base!r} itself, or copy the data set to a local disk.",
                )
            source = Selection(source, name, [(base, mixed_order(source.labels(base)))])
    return source


def unmixed(source: Source, base: str) -> str:
    """The split S of "S.mixed"; any other split is returned unchanged."""
    inner = base.removesuffix(MIXED)
    return inner if inner in source.splits else base


def mixed_order(labels: np.ndarray) -> np.ndarray:
    """int64 (n,): positions sorted by the relative rank of each image in its class, from 0 to 1; ties keep order."""
    _, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = np.argsort(numbers, kind="stable")
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.argsort((rank + 0.5) / counts[numbers], kind="stable")


def concatenated(source: Source, splits: str, name: str = "joined") -> Selection:
    """Joins splits such as "train+validation[:50%]" in their order to one."""
    spans = [source.span(split) for split in splits.split("+")]
    return Selection(source, name, [(span.base, np.arange(span.start, span.stop)) for span in spans])


def class_balanced_fraction(
    source: Source, split: str, fraction: float, *, seed: int = 0, name: str = "share"
) -> Selection:
    """The same fraction of the images of each class of a split or slice, at least one, chosen at random by the seed.

    Raises:
      UserError: the split has no labels, or the fraction is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UserError(
            f"The fraction {fraction:g} of the training images is not valid", "Give more than 0 and at most 1."
        )
    span = source.span(split)
    if not source.labelled(span.base):
        raise UserError(
            f"{source.name}, split {split!r}, has no labels, which a fraction of each class needs",
            "Use the whole split.",
        )
    labels, rng = source.labels(span.base)[span.start : span.stop], np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        chosen.append(rng.permutation(members)[: max(round(fraction * len(members)), 1)])
    return Selection(source, name, [(span.base, span.start + np.sort(np.concatenate(chosen)))])
