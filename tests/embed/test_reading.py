"""Shards of embeddings: when a file gets its name, the labels of a shard, and the limit of unreadable images."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from bt_jax.data.sources import base as records
from bt_jax.data.sources import broken, spans
from bt_jax.embed import reading, shard_files, shards
from bt_jax.embed.__main__ import main
from bt_jax.messages import UserError


def test_ctrl_c_of_embed(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "run", interrupted)
    assert main(["--encoder=x", "--out=y", "--data=patterns"]) == 130
    assert capsys.readouterr().err == "embed: stopped. Run the same command to resume after the last complete shard.\n"


def test_shards_are_on_disk_before_they_get_their_name(tmp_path, monkeypatch):
    """Each column before the next one and the features last; no other file remains."""
    seen = []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append((os.fstat(file).st_size, len(list(tmp_path.iterdir())))))
    shard_files.Npy().write(
        tmp_path, "x", shard_files.Rows(np.arange(3), ["a", "b", "c"], None, np.ones((3, 2), np.float32))
    )
    paths = [tmp_path / f"{name}-x.npy" for name in ("ids", "files", "features")]
    assert seen == [
        (path.stat().st_size, i) for i, path in enumerate(paths, 1)
    ]  # one of them is the file without a name
    assert sorted(tmp_path.iterdir()) == sorted(paths)


class Drawn(records.Source):
    """Twenty images of 4 x 4 pixels; the grey level is the id, every second id is a label, image 7 is unreadable."""

    name, splits, num_classes = "drawn", {"train": 20}, 20

    def read(self, base, ids):
        return [(b"" if i == 7 else png(np.full((4, 4, 3), i, np.uint8)), int(i) if i % 2 else None) for i in ids]


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def test_images_without_a_label_have_minus_one(tmp_path):
    source, span = Drawn(), spans.Span("train", 4, 15)
    unreadable = reading.ImagesWithoutRow(source, {"train": span}, limit=0.5, file=tmp_path / "broken.txt")
    given = reading.Reading(source, unreadable, 8, 64, 3)
    batches = list(reading.array_batches(given, span, (4, 4)))
    mask, label, ids = (np.concatenate([batch[name] for batch in batches]) for name in ("mask", "label", "id"))
    pixels = np.concatenate([batch["image"] for batch in batches])[:, 0, 0, 0]
    assert ids[mask].tolist() == [4, 5, 6, *range(8, 15)] == pixels[mask].tolist()
    assert label[mask].tolist() == [i if i % 2 else -1 for i in ids[mask]]
    assert list(unreadable.reasons["train"]) == [7]


def test_the_limit_of_embed_counts_over_the_split(tmp_path, monkeypatch):
    """One image of twenty is a tenth of its shard."""
    monkeypatch.setattr(broken, "FEW", 0)
    source, whole = Drawn(), spans.Span("train", 0, 20)
    unreadable = reading.ImagesWithoutRow(source, {"train": whole}, limit=0.05, file=tmp_path / "broken.txt")
    unreadable.add(spans.Span("train", 0, 10), 7, "damaged")
    with pytest.raises(UserError, match="2 of the 20 images .* listed in .*broken.txt.* --broken_limit=0.1"):
        unreadable.add(spans.Span("train", 0, 10), 8, "damaged")
    assert (tmp_path / "broken.txt").read_text() == "train\t7\ttrain/7\tdamaged\ntrain\t8\ttrain/8\tdamaged\n"
