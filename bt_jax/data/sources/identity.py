"""The record of a run's images: counts, classes and digests, which the next start compares."""

from collections.abc import Iterable
from typing import Any

from bt_jax.data.sources.base import Source
from bt_jax.data.sources.selection import unmixed


def describe(source: Source, splits: Iterable[str]) -> dict[str, Any]:
    """Counts, classes and digests of the splits in use, as JSON.

    Args:
      splits: splits or slices of the source; "+" joins several. Splits that the source lacks are left out.

    Returns:
      {"classes": names of the classes, or their number if they have none, "splits": {whole split: {"images": number of
      its images, "digests": {the source's kind: `Source.digest`}}}}.
    """
    bases = [part.partition("[")[0].strip() for split in splits for part in split.split("+")]
    whole = dict.fromkeys(unmixed(source, base) for base in bases)
    return {
        "classes": list(source.class_names) or source.num_classes,
        "splits": {base: _split(source, base) for base in whole if base in source.splits},
    }


def _split(source: Source, base: str) -> dict[str, Any]:
    digest = source.digest(base)
    return {"images": source.splits[base], "digests": {source.kind: digest} if digest else {}}
