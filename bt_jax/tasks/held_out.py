"""Held-out images: whether a task has any, whether it also trains on them, and how to hold some out."""

import numpy as np

from bt_jax import messages
from bt_jax.config.pretraining import Pretrain
from bt_jax.config.sections import Run
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.selection import MIXED, unmixed
from bt_jax.messages import UserError


def advice(settings: Run) -> str:
    """A sentence that says how to hold a fifth of the images out: by the folder recipe's argument, or by two flags."""
    if isinstance(settings, Pretrain) and settings.data.name == "folder":
        return "Hold images out with val=20%, as in --config=pretrain_folder:val=20%."
    base = settings.data.train_split.split("+")[0].partition("[")[0].removesuffix(MIXED)
    flags = f"--config.data.train_split='{base}{MIXED}[:80%]' --config.data.val_split='{base}{MIXED}[80%:]'"
    return f"Hold images out with {flags}."


def check_split(settings: Run, source: Source) -> None:
    """UserError if the data set lacks a split of the config; it names the key, or says how to hold images out."""
    wholes = sorted({unmixed(source, split) for split in source.splits})
    for key in ("val_split", "train_split"):
        for part in getattr(settings.data, key).split("+"):
            base = part.partition("[")[0].strip()
            if not base or base in source.splits:
                continue
            missing = f"{source.name} has no split {base!r}"
            if key == "val_split" and len(wholes) == 1:
                raise UserError(f"{missing}: its only split is {wholes[0]!r}", advice(settings))
            raise UserError(missing, f"Set --config.data.{key} to a split that it has: {', '.join(wholes)}.")


def say(settings: Run, source: Source) -> None:
    """Says if a pretraining run has labels but no held-out split; warns if training uses held-out images."""
    train, val = settings.data.train_split, settings.data.val_split
    if not val:
        evaluates = isinstance(settings, Pretrain) and (settings.evals.every_epochs or settings.evals.final)
        if evaluates and all(source.labelled(source.span(part).base) for part in train.split("+")):
            messages.say(f"There is no held-out split, so kNN and probe are left out. {advice(settings)}")
        return
    shared, count = overlap(source, train, val)
    if shared:
        messages.say(
            f"WARNING: {shared} of the {count} held-out images ({val}) are also training images ({train}), so the"
            f" accuracies say little about new images. {advice(settings)}"
        )


def overlap(source: Source, train: str, val: str) -> tuple[int, int]:
    """(number of held-out images that are training images too, number of held-out images).

    Args:
      train: one split or slice, or several joined by "+".
    """
    trained: dict[str, list[np.ndarray]] = {}
    for part in train.split("+"):
        for base, ids in _originals(source, part).items():
            trained.setdefault(base, []).append(ids)
    held_out = _originals(source, val)
    shared = [np.isin(ids, np.concatenate(trained[base])).sum() for base, ids in held_out.items() if base in trained]
    return int(sum(shared)), sum(map(len, held_out.values()))


def _originals(source: Source, split: str) -> dict[str, np.ndarray]:
    span = source.span(split)
    return source.originals(span.base, np.arange(span.start, span.stop))
