"""Writes features of a data set shard by shard, so that an interrupted command resumes after the last complete one."""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bt_jax import models, sharding, storage
from bt_jax.augment import recipes
from bt_jax.data.prefetch import Prefetch
from bt_jax.data.sources import orientation
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.open_source import open_source
from bt_jax.data.sources.selection import unmixed, with_mixed
from bt_jax.data.sources.spans import Span
from bt_jax.embed.reading import ImagesWithoutRow, Reading, Shard, batches_of, cut, file_names
from bt_jax.embed.record import fingerprint, open_out, orientation_of, view_sizes
from bt_jax.embed.shard_files import Npy, Parquet, Rows, WriteErrors
from bt_jax.evals import features, finite
from bt_jax.messages import Heartbeat, Ongoing, UserError, counted
from bt_jax.run_folder import lock
from bt_jax.selfcheck import comparison
from bt_jax.weights import load


class Job(NamedTuple):
    """The settings that all shards share; `encode` maps a batch on the devices to features (b, d)."""

    reading: Reading
    mesh: Mesh
    encode: Callable[[dict], jax.Array]
    store: Npy | Parquet
    dimension: int


@lock.releasing
def run(options: argparse.Namespace) -> None:
    """Embeds the missing shards of the splits. UserError for anything that the user can fix."""
    for name in ("shard", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} is not positive", "Give at least 1.")
    out = storage.local_path(options.out)
    lock.check_free(out)
    mesh = sharding.make_mesh()
    store = {"npy": Npy, "parquet": Parquet}[options.format]()
    view = view_sizes(options)
    source, spans = _open_data(options, out)
    model, variables, _ = load.read(options.encoder)
    net = models.build(**model["build"])
    settings = {
        "weights": fingerprint(variables),
        "data": _data_name(options, source),
        "dimension": net.feature_dim,
        "mean": model["mean"],
        "std": model["std"],
        "format": options.format,
        "shard": options.shard,
        "exif_orientation": orientation.APPLY if source.upright else orientation.IGNORE,
    } | view
    digests = {base: f"{source.kind} {source.digest(unmixed(source, base))}".strip() for base in spans}
    record = open_out(out, options.encoder, settings, spans, digests)
    if not options.no_self_check:
        comparison.require(storage.user_cache() / "selfcheck")
    recipe = recipes.RECIPES["imagenet"](view["size"])  # evaluation uses its size, mean and std alone
    recipe = dataclasses.replace(recipe, mean=tuple(model["mean"]), std=tuple(model["std"]))
    embed = features.make_embed(net, recipe, mesh, resize=view["resize"])
    unreadable = ImagesWithoutRow(source, spans, limit=options.broken_limit, file=out / "broken.txt")
    batch_size = sharding.round_up(options.batch_size, mesh)
    reading = Reading(source, unreadable, batch_size, view["canvas"], len(model["mean"]))
    job = Job(reading, mesh, partial(embed, sharding.put_replicated(variables, mesh)), store, net.feature_dim)
    for base, span in spans.items():
        shards = cut(span, options.shard)
        embed_split(job, out / base, shards)
        broken = len(unreadable.reasons[base])
        record["splits"][base] |= {"shards": len(shards), "rows": span.stop - span.start - broken, "unreadable": broken}
        storage.write_json(out / "embed.json", record)
    print(f"wrote {out}")


def embed_split(job: Job, folder: Path, shards: list[Shard]) -> None:
    """Makes the shards that are missing or damaged, in order, and prints one line about the split."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in shards if not finished(job, folder, shard)]
    for shard in missing:  # their images are read again, and may have been restored
        job.reading.unreadable.forget(shard.span)
    job.reading.unreadable.write()
    (base, start, _), stop = shards[0].span, shards[-1].span.stop
    count = sum(shard.span.stop - shard.span.start for shard in missing)
    done, began = 0, time.monotonic()
    with (
        Ongoing(count) as ongoing,
        Prefetch(batches_of(job.reading, missing), partial(_put, mesh=job.mesh)) as ahead,
    ):

        def heartbeat(images: int) -> Heartbeat:
            text = f"embedding {base}: {done + images:,} of {count:,} images"
            return Heartbeat(ongoing, lambda seconds: text, done + images)

        for shard, batches in groupby(ahead, key=lambda item: item[0]):
            rows = _rows(job, shard, batches, heartbeat)
            done += shard.span.stop - shard.span.start
            job.reading.unreadable.write()  # before the shard: see `finished`
            with WriteErrors(folder):
                job.store.write(folder, shard.stem, rows)
    unreadable, kept = len(job.reading.unreadable.reasons[base]), len(shards) - len(missing)
    print(
        f"{base}: {counted(stop - start, 'image')} in {counted(len(shards), 'shard')}"
        + (f", {kept} of which existed already" if kept else "")
        + f", {counted(unreadable, 'unreadable image')}"
        + (f", {count / (time.monotonic() - began):.0f} images/s" if count else "")
    )


def _put(item: tuple[Shard, dict], mesh: Mesh) -> tuple[Shard, dict, dict | None]:
    """Puts the encoder's inputs of a batch on the devices; None if the batch has no readable image."""
    shard, batch = item
    inputs = {name: batch.pop(name) for name in ("image", "size") if name in batch}
    return shard, batch, sharding.put_global(inputs, mesh) if batch["mask"].any() else None


def _rows(job: Job, shard: Shard, batches: Iterable, heartbeat: Callable[[int], Heartbeat]) -> Rows:
    """Runs the encoder on the batches of one shard and drops their padding.

    Args:
      heartbeat: heartbeat(number of images of the shard that are done) -> the `Heartbeat` for the next batch.
    """
    rows = [np.zeros((0, job.dimension), np.float32)]
    ids, labels = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for _, batch, inputs in batches:
        keep = batch["mask"]
        if inputs is not None:
            with heartbeat(sum(map(len, rows))):
                rows.append(np.asarray(job.encode(inputs))[keep])
            ids.append(batch["id"][keep].astype(np.int64))
            labels.append(batch["label"][keep])
    rows = np.concatenate(rows)
    finite.require(rows, f"shard {shard.span.base}/{shard.stem}")
    ids, base = np.concatenate(ids), shard.span.base
    return Rows(
        ids,
        file_names(job.reading.source, base, ids),
        np.concatenate(labels) if job.reading.source.labelled(base) else None,
        rows,
    )


def finished(job: Job, folder: Path, shard: Shard) -> bool:
    """True if a shard exists, is intact, and has the images of the data set."""
    try:
        index = job.store.index(folder, shard.stem)
    except Exception:  # NumPy and Arrow raise many types on a missing or damaged file
        return False
    (base, start, stop), broken = shard.span, job.reading.unreadable.reasons[shard.span.base]
    ids = [number for number in range(start, stop) if number not in broken]
    return (
        index.id.tolist() == ids
        and index.shape == (len(ids), job.dimension)
        and index.labelled == job.reading.source.labelled(base)
        and index.file == [job.store.text(name) for name in file_names(job.reading.source, base, ids)]
    )


def _open_data(options: argparse.Namespace, out: Path) -> tuple[Source, dict[str, Span]]:
    """The source, and the span of each split by its name.

    With --exif_orientation=auto, the source has the orientation that embed.json in `out` records, if it exists.
    """
    if sum(option is not None for option in (options.data, options.npz_in, options.folder)) != 1:
        raise UserError("One data set is needed", "Give one of --data=NAME, --folder=DIR and --npz_in=FILE.")
    exif = options.exif_orientation
    source = open_source(
        options.data,
        data_dir=options.data_dir,
        npz=options.npz_in,
        folder=options.folder,
        exif_orientation=orientation_of(out) if exif == "auto" else exif,
    )
    splits = options.splits.split(",") if options.splits else list(source.splits)
    source = with_mixed(source, splits)
    asked = [source.span(split) for split in splits]
    spans = {span.base: span for span in asked}
    if len(spans) < len(asked):
        raise UserError(f"--splits={options.splits} names a split twice", "Use a separate --out for each slice.")
    return source, spans


def _data_name(options: argparse.Namespace, source: Source) -> str:
    path = options.folder or options.npz_in
    return storage.absolute_text(path) if path else source.name
