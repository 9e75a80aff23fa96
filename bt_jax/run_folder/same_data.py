"""Whether a second start in a run folder has the same images: counts, classes, and digests of what the splits hold.

RUN/data.json keeps them from the first start on. Where the images lie is not in it: they may move. A digest is of the
list of files of a folder, in order, of the content of a cache file, or of the version of a TFDS data set
(`data.sources.base.Source.digest`), so that nothing is read for it.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bt_jax import storage
from bt_jax.messages import UserError

NAME = "data.json"
NAMED = 5  # classes that a line names
HELD = {"folder": "file names", "npz": "images", "tfds": "version"}  # what a digest is of, by the kind of data set


class Images(NamedTuple):
    """The images of a run.

    Attributes:
      now: {"classes": their names, or how many where they have none, "splits": {split: {"images": how many, "digests":
        {kind of data set: digest}}}}, as `data.sources.identity.describe` gives it.
      as_in_0_1_0: () -> the same, as that version understood the data set.
    """

    now: dict[str, Any]
    as_in_0_1_0: Callable[[], dict[str, Any]]

    def facts(self) -> dict[str, Any]:
        """What several processes compare: name and value."""
        classes = self.now["classes"]
        names = "" if isinstance(classes, int) else f" ({hashlib.sha256(repr(classes).encode()).hexdigest()[:8]})"
        facts: dict[str, Any] = {"classes": f"{_number(classes)}{names}"}
        for split, about in self.now["splits"].items():
            facts[f"images of {split}"] = about["images"]
            facts |= {f"{HELD.get(kind, kind)} of {split}": digest for kind, digest in about["digests"].items()}
        return facts


def check(folder: Path, images: Images, *, started_before: bool) -> dict[str, Any]:
    """Compares the images with those of the run's first start.

    Args:
      started_before: whether the run has been started before. One without data.json was begun by bt_jax 0.1.0.

    Returns:
      What data.json is to hold.

    Raises:
      UserError: they differ, or the file is damaged.
    """
    fix = "Bring back the images of that run to resume it, or give another --workdir."
    try:
        before = storage.read_json(folder / NAME)
        if before is None:
            if started_before and (different := differences(images.as_in_0_1_0(), images.now)):
                raise UserError(
                    f"bt_jax 0.1.0, which began the run in {storage.printable(folder)}, took other files for images or"
                    f" splits ({'; '.join(different)})",
                    "Finish the run with that version, or give another --workdir.",
                )
            return images.now
        different = differences(before, images.now)
        if different:
            raise UserError(f"{storage.printable(folder)} holds a run on other images ({'; '.join(different)})", fix)
        splits = {**before["splits"]}
        for split, about in images.now["splits"].items():
            known = splits.get(split, about)
            splits[split] = known | {"digests": about["digests"] | known["digests"]}
        return before | {"splits": splits}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{storage.printable(folder / NAME)} is damaged",
            "Delete it if the images are those that the run began with.",
        ) from None


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, as "train: 30 images -> 45". A split that one of the two lacks was not used, and does not count."""
    lines = []
    for split in sorted(before["splits"].keys() & now["splits"].keys()):
        old, new = before["splits"][split], now["splits"][split]
        common = old["digests"].keys() & new["digests"].keys()
        other = [kind for kind in sorted(common) if old["digests"][kind] != new["digests"][kind]]
        if old["images"] != new["images"]:
            lines.append(f"{split}: {old['images']} images -> {new['images']}")
        elif other:
            kind = other[0]
            change = f": {old['digests'][kind]} -> {new['digests'][kind]}" if kind == "tfds" else ""
            lines.append(f"{split}: {new['images']} images as before, with other {HELD.get(kind, kind)}{change}")
    return lines + _classes(before["classes"], now["classes"])


def _number(classes: list[str] | int) -> int:
    return classes if isinstance(classes, int) else len(classes)


def _classes(before: list[str] | int, now: list[str] | int) -> list[str]:
    """A line where they differ; names are compared where both have them."""
    change = f"classes: {_number(before)} -> {_number(now)}"
    if isinstance(before, int) or isinstance(now, int):
        return [change] if _number(before) != _number(now) else []
    if before == now:
        return []
    parts = []
    for verb, names in (("new", set(now) - set(before)), ("gone", set(before) - set(now))):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            parts.append(f"{verb}: {', '.join(sorted(names)[:NAMED])}{more}")
    return [f"{change}, {', '.join(parts) or 'in another order'}"]
