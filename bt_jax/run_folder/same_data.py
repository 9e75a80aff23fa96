"""Checks that a second start in a run folder has the same images: counts, classes and digests of the splits.

The first start writes them to RUN/data.json. Paths are not in it, because images may move. A digest is a hash of the
sorted list of files of a folder, of the content of a cache file, or of the version of a TFDS data set
(`data.sources.base.Source.digest`), so that no image is read for it.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bt_jax import storage
from bt_jax.messages import UserError

NAME = "data.json"
NAMED = 5  # classes that a line names
HASHED = {"folder": "file names", "npz": "images", "tfds": "version"}  # kind of data set -> content of its digest


class Images(NamedTuple):
    """The images of a run.

    Attributes:
      now: {"classes": their names, or their number if they have none, "splits": {split: {"images": number of images,
        "digests": {kind of data set: digest}}}}, the result of `data.sources.identity.describe`.
      as_in_0_1_0: () -> the same by the rules of bt_jax 0.1.0.
    """

    now: dict[str, Any]
    as_in_0_1_0: Callable[[], dict[str, Any]]

    def facts(self) -> dict[str, Any]:
        """{name: value} for the comparison of processes."""
        classes = self.now["classes"]
        names = "" if isinstance(classes, int) else f" ({hashlib.sha256(repr(classes).encode()).hexdigest()[:8]})"
        facts: dict[str, Any] = {"classes": f"{_number(classes)}{names}"}
        for split, about in self.now["splits"].items():
            facts[f"images of {split}"] = about["images"]
            facts |= {f"{HASHED.get(kind, kind)} of {split}": digest for kind, digest in about["digests"].items()}
        return facts


def check(folder: Path, images: Images, *, started_before: bool) -> dict[str, Any]:
    """Compares the images with those of the run's first start.

    Args:
      started_before: True for a resumed run. If it has no data.json, bt_jax 0.1.0 started it.

    Returns:
      The new content of data.json.

    Raises:
      UserError: the images differ, or the file is damaged.
    """
    fix = "Restore the images of that run to resume it, or give another --workdir."
    try:
        before = storage.read_json(folder / NAME)
        if before is None:
            if started_before and (different := differences(images.as_in_0_1_0(), images.now)):
                raise UserError(
                    f"The run in {storage.printable(folder)} is from bt_jax 0.1.0, which read other images or splits"
                    f" from this data set ({'; '.join(different)})",
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
            "Delete it if the images are those of the first start of the run.",
        ) from None


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The differences, as "train: 30 images -> 45". A split that one side lacks was not used and is ignored."""
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
            lines.append(f"{split}: {new['images']} images as before, with other {HASHED.get(kind, kind)}{change}")
    return lines + _classes(before["classes"], now["classes"])


def _number(classes: list[str] | int) -> int:
    return classes if isinstance(classes, int) else len(classes)


def _classes(before: list[str] | int, now: list[str] | int) -> list[str]:
    """A line if the classes differ, otherwise []; names are compared if both sides have them."""
    change = f"classes: {_number(before)} -> {_number(now)}"
    if isinstance(before, int) or isinstance(now, int):
        return [change] if _number(before) != _number(now) else []
    if before == now:
        return []
    parts = []
    for kind, names in (("new", set(now) - set(before)), ("missing", set(before) - set(now))):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            parts.append(f"{kind}: {', '.join(sorted(names)[:NAMED])}{more}")
    return [f"{change}, {', '.join(parts) or 'in another order'}"]
