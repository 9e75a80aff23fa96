"""The meaning of the folders below a folder of images: splits or classes.

One rule: top folders with names of splits (SPLIT, in any case) are splits if no other folder is beside them, or if a
training and a held-out split are among them. All other top folders are classes: a class may be called "train". Single
folders above the splits are ignored. The notes name, with numbers of images, the folders of the splits and the folders
that were renamed, left out or taken as labels.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from bt_jax.data.sources.folder_listing import in_order
from bt_jax.storage import printable

TRAINING, HELD_OUT = "train|training", "val|valid|validation|test|testing|dev|eval|evaluation|holdout"
# A number or a word may follow: "train2017", "test_set".
SPLIT = re.compile(
    rf"(?:(?P<train>{TRAINING})|(?P<held>{HELD_OUT})|unlabell?ed|extra)(?:[-_]?(?:set|images|data|\d+))?", re.I
)
NAMED = 8  # folders that a line names
HINT = "; to pretrain without labels: --config.data.labels=False"


class Layout(NamedTuple):
    """The splits of a folder of images.

    Attributes:
      splits: {split: (its folder, "" for the root, and the paths below it)}.
      lines: notes about the splits.
      label_lines: notes about the labels.
      label_hint: what pretraining adds to the last of them.
    """

    splits: dict[str, tuple[str, list[str]]]
    lines: list[str]
    label_lines: list[str]
    label_hint: str = ""


def arrange(files: list[str]) -> Layout:
    """Finds the splits of a folder from the sorted relative paths of its images; one split "train" if it has none."""
    above, within = _without_single_folders(files)
    tops = _tops(within)
    named = _named(tops)
    if not named:
        return Layout({"train": ("", files)}, [], *_about_labels(files))
    prefix = f"{above}/" if above else ""
    splits = {split: (prefix + folder, _below(within, folder)) for folder, split in named.items()}
    lines = _about_splits(above, named, tops, len(within))
    loose = [line for split, (_, paths) in splits.items() for line in _about_loose(split, paths)]
    return Layout(splits, lines, loose)


def classes(paths: Iterable[str]) -> set[str]:
    """The top folders of a split's paths; empty if any image is outside a folder."""
    tops = {path.partition("/")[0] if "/" in path else "" for path in paths}
    return set() if "" in tops else tops


def arrange_as_0_1_0(files: list[str]) -> dict[str, tuple[str, list[str]]]:
    """`Layout.splits` by the rule of bt_jax 0.1.0, to resume its runs."""
    suffixes = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
    files = [path for path in files if path.lower().endswith(suffixes)]
    tops = _tops(files)
    named = [split for split in ("train", "val", "validation", "test") if split in tops]
    return {split: (split, _below(files, split)) for split in named} if "train" in named else {"train": ("", files)}


def _tops(files: list[str]) -> Counter:
    """The number of images below each top folder."""
    return Counter(path.partition("/")[0] for path in files if "/" in path)


def _below(files: list[str], folder: str) -> list[str]:
    return [path.removeprefix(f"{folder}/") for path in files if path.startswith(f"{folder}/")]


def _without_single_folders(files: list[str]) -> tuple[str, list[str]]:
    """The single folders above the splits, as "outer/inner", and the paths below them; ("", files) if there are none.

    In a chain of single folders the splits are at the first level with several folders. If that level has no splits,
    they are the first single folder with the name of a split.
    """
    alone, within, first = [], files, None
    while len(tops := _tops(within)) == 1 and tops.total() == len(within):
        (top,) = tops
        if first is None and _named(tops):
            first = "/".join(alone), within
        alone.append(top)
        within = _below(within, top)
    if len(tops) > 1 and _named(tops):
        return "/".join(alone), within
    return first or ("", files)


def _named(tops: Iterable[str]) -> dict[str, str]:
    """{top folder: name of its split}, in the order of the names; {} if the top folders are classes."""
    matches = {top: match for top in tops if (match := SPLIT.fullmatch(top))}
    train, held = (any(match[kind] for match in matches.values()) for kind in ("train", "held"))
    others = any(top not in matches for top in tops)
    if not (train or held) or others and not (train and held):
        return {}
    names = {top: top.lower().replace("-", "_") for top in matches}  # valid names in TFDS
    times = Counter(names.values())
    # "Train" beside "train" keeps its capital letter.
    named = {top: name if times[name] == 1 else top for top, name in names.items()}
    return dict(sorted(named.items(), key=lambda item: item[1]))


def _about_splits(above: str, named: dict[str, str], tops: Counter, count: int) -> list[str]:
    lines = []
    if above or any(folder != split for folder, split in named.items()):
        where = {folder: printable(f"{above}/{folder}" if above else folder) for folder in named}
        places = [f"{split} ({tops[folder]} images of {where[folder]})" for folder, split in named.items()]
        lines.append(f"the splits are {', '.join(places)}")
    beside = {folder: tops[folder] for folder in in_order(tops) if folder not in named}
    loose = count - tops.total()
    if beside or loose:
        parts = [f"{number} in {printable(folder)}" for folder, number in list(beside.items())[:NAMED]] + _more(beside)
        parts += [f"{loose} in no folder"] if loose else []
        lines.append(
            f"WARNING: {sum(beside.values()) + loose} images beside the splits {', '.join(named.values())} are left"
            f" out: {', '.join(parts)}"
        )
    return lines


def _about_labels(files: list[str]) -> tuple[list[str], str]:
    """`Layout.label_lines` and `Layout.label_hint` of a folder without splits."""
    tops = _tops(files)
    if not tops or tops.total() < len(files):
        return _about_loose("train", files), ""
    names = in_order(tops)
    if len(names) == 1:
        inner = len(classes(_below(files, names[0])))
        hint = f"; name that folder to take its {inner} sub-folders as labels" if inner > 1 else ""
        return [f"no labels: all images are in one folder, {printable(names[0])}{hint}"], ""
    line = f"taking {len(names)} top folders as labels: {', '.join([*map(printable, names[:NAMED]), *_more(names)])}"
    splits = [name for name in names if SPLIT.fullmatch(name)]
    others = [name for name in names if name not in splits]
    if splits and others:
        beside = f"{printable(others[0])} " + (f"and {len(others) - 1} more are" if len(others) > 1 else "is")
        verb, them = ("it is not a split", "it") if len(splits) == 1 else ("they are not splits", "them")
        line += f"; {', '.join(map(printable, splits))} among them: {verb}, because {beside} beside {them}"
    return [line], HINT


def _about_loose(split: str, paths: list[str]) -> list[str]:
    loose = [path for path in paths if "/" not in path]
    if not loose or len(loose) == len(paths):
        return []
    return [
        f"WARNING: {len(loose)} of {len(paths)} images of {split} are in no sub-folder ({printable(loose[0])} ...), so"
        " sub-folders are not taken as labels"
    ]


def _more(names) -> list[str]:
    return [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
