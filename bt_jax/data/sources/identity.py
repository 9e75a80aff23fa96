"""What a run keeps of the images that it began with: counts, classes and digests, which its next start compares."""

from collections.abc import Iterable
from typing import Any

from bt_jax.data.sources.base import Source
from bt_jax.data.sources.selection import unmixed


def of(source: Source, splits: Iterable[str]) -> dict[str, Any]:
    """Counts, classes and digests of the splits that are used, as JSON.

    Args:
      splits: of the source, whole or cut; several joined by "+". Those that it lacks are left out.

    Returns:
      {"classes": their names, or their number where they have none, "splits": {whole split: {"images": its number of
      images, "digests": {the source's kind: `Source.digest`}}}}.
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
