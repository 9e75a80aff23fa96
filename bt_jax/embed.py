"""Features of every image of a data set, with its id, file and label: written in order, in shards.

    python -m bt_jax.embed --encoder=runs/mine --folder=IMAGES --out=features                  # a folder of images
    python -m bt_jax.embed --encoder=runs/mine --data=cifar10 --splits=test --out=features     # a TFDS data set
    python -m bt_jax.embed --encoder=runs/mine/checkpoints/8000 --npz_in=mine.npz --out=features --format=parquet

Each image comes once, as the evaluation sees it: resized, cut at the centre, normalised as in training. What is written
for shard 0 of 5 of the split "train":

    --format=npy      train/features-00000-of-00005.npy   float32 (n, d)
                      train/ids-00000-of-00005.npy        int64 (n,): the image's place in the whole split
                      train/files-00000-of-00005.npy      str (n,): its path below --folder, else SPLIT/ID
                      train/labels-00000-of-00005.npy     int32 (n,), only where the split has labels
    --format=parquet  train/embeddings-00000-of-00005.parquet with the columns id, file, label and feature
    embed.json        encoder, data, dimension, counts, versions, command
    broken.txt        the images that cannot be read: split, id, file and reason, tab-separated

Images that cannot be read have no row: shards then are shorter, and `ids` says which images are there.

The same command goes on where it was stopped: shards that are whole are left as they are, damaged ones are made again;
to have another one made again, for example after images were restored, delete it. Further splits may be added later.
Where all images of a shard have one size, up to --canvas pixels, Pillow decodes them; TensorFlow streams all others.

Exit status 0: all is written; 2: it is not, with one line on stderr; 130: stopped by Ctrl-C.
"""

import argparse
import dataclasses
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bt_jax import models, selfcheck, sharding, storage
from bt_jax.augment import recipes
from bt_jax.cli import tool
from bt_jax.data.prefetch import Prefetch
from bt_jax.data.sources.base import Source, progress
from bt_jax.data.sources.open_source import open_source
from bt_jax.data.sources.spans import Span
from bt_jax.embedding.files import Explained, Npy, Parquet, Rows
from bt_jax.embedding.images import Reading, Shard, Unreadable, batches_of, cut, file_names
from bt_jax.embedding.record import CANVAS, fingerprint, open_out, view_sizes
from bt_jax.evals import features
from bt_jax.messages import UserError
from bt_jax.weights import load


class Job(NamedTuple):
    """All that does not change from shard to shard; `encode` takes a batch on the devices to features (b, d)."""

    reading: Reading
    mesh: Mesh
    encode: Callable[[dict], jax.Array]
    store: Npy | Parquet
    dimension: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    try:
        return tool.run(parser(), run, arguments)
    except KeyboardInterrupt:
        print("embed: stopped; the same command goes on after the last whole shard", file=sys.stderr)
        return 130


def parser() -> tool.Parser:
    parser = tool.Parser("embed", __doc__)
    add = parser.add_argument
    add(
        "--encoder",
        metavar="PATH",
        required=True,
        help="a run folder (its newest checkpoint), RUN/checkpoints/STEP, or weights that bt_jax.convert reads",
    )
    add("--data", metavar="NAME", help='"patterns", or a TFDS name such as cifar10, cifar10:3.0.2, imagenet2012')
    add(
        "--data_dir",
        metavar="DIR",
        help="folder of TFDS data sets (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )
    add("--folder", metavar="DIR", help="a folder of images instead of a named data set")
    add("--npz_in", metavar="FILE", help="a cache file of bt_jax.prepare instead of a named data set")
    add("--splits", metavar="A,B", help='the splits, whole or cut like "train[:1000]" (default: all)')
    add("--out", metavar="DIR", required=True, help="where to write; made if absent, continued if it holds the same")
    add("--format", choices=("npy", "parquet"), default="npy", help="of the shards (default: npy)")
    add("--shard", metavar="N", type=int, default=10_000, help="images in a shard (default: 10000)")
    add(
        "--size",
        metavar="PIXELS",
        type=int,
        help=f"side of what the encoder sees (default: the run's, else {load.SIZE})",
    )
    add(
        "--resize",
        metavar="PIXELS",
        type=int,
        help="shorter side before the cut at the centre; 0: --size (default: the run's, else 256, in proportion to"
        " --size)",
    )
    add(
        "--canvas",
        metavar="PIXELS",
        type=int,
        help=f"streamed images of a longer side are shrunk to this while decoding (default: the run's, else {CANVAS})",
    )
    add("--no_self_check", action="store_true", help="skip the check that this machine computes rightly")
    add("--batch_size", metavar="N", type=int, default=256, help="rounded up to the number of devices (default: 256)")
    add(
        "--broken_limit",
        metavar="SHARE",
        type=float,
        default=0.01,
        help="share of a split's images that may be unreadable; 0: none (default: 0.01)",
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Embeds whatever is missing of the splits. UserError for anything the user can mend."""
    for name in ("shard", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} is not positive", "Give at least 1")
    store = {"npy": Npy, "parquet": Parquet}[options.format]()
    view = view_sizes(options)
    source, spans = _open_data(options)
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
    } | view
    out = storage.here(options.out)
    record = open_out(out, options.encoder, settings, spans)
    mesh = sharding.make_mesh()
    if not options.no_self_check:
        selfcheck.require(storage.user_cache() / "selfcheck")
    recipe = recipes.RECIPES["imagenet"](view["size"])  # of which the evaluation sees the normalisation alone
    recipe = dataclasses.replace(recipe, mean=tuple(model["mean"]), std=tuple(model["std"]))
    embed = features.make_embed(net, recipe, mesh, resize=view["resize"])
    unreadable = Unreadable(source, spans, limit=options.broken_limit, file=out / "broken.txt")
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
    for shard in missing:  # they are read again, and their images may have been restored
        job.reading.unreadable.forget(shard.span)
    job.reading.unreadable.write()
    (base, start, _), stop = shards[0].span, shards[-1].span.stop
    count = sum(shard.span.stop - shard.span.start for shard in missing)
    ticks = progress(range(count), f"embedding {base}", count)
    began = time.monotonic()
    with Prefetch(batches_of(job.reading, missing), partial(_put, mesh=job.mesh)) as ahead:
        for shard, batches in groupby(ahead, key=lambda item: item[0]):
            rows = _rows(job, shard, batches, ticks)
            job.reading.unreadable.write()  # before the shard: a row that is in neither means that the shard is damaged
            with Explained(folder):
                job.store.write(folder, shard.stem, rows)
    deque(ticks, maxlen=0)
    unreadable, there = len(job.reading.unreadable.reasons[base]), len(shards) - len(missing)
    print(
        f"{base}: {stop - start} images in {len(shards)} shards"
        + (f", {there} of which were there" if there else "")
        + f", {unreadable} unreadable"
        + (f", {count / (time.monotonic() - began):.0f} images/s" if count else "")
    )


def _put(item: tuple[Shard, dict], mesh: Mesh) -> tuple[Shard, dict, dict | None]:
    """Puts what the encoder needs of a batch on the devices; nothing of one without any image to see."""
    shard, batch = item
    inputs = {name: batch.pop(name) for name in ("image", "size") if name in batch}
    return shard, batch, sharding.put_global(inputs, mesh) if batch["mask"].any() else None


def _rows(job: Job, shard: Shard, batches: Iterable, ticks: Iterator) -> Rows:
    """Runs the encoder over the batches of one shard and drops their padding."""
    found = [np.zeros((0, job.dimension), np.float32)]
    ids, labels = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for _, batch, inputs in batches:
        keep = batch["mask"]
        if inputs is not None:
            found.append(np.asarray(job.encode(inputs))[keep])
            ids.append(batch["id"][keep].astype(np.int64))
            labels.append(batch["label"][keep])
        deque(islice(ticks, int(keep.sum())), maxlen=0)
    ids, base = np.concatenate(ids), shard.span.base
    return Rows(
        ids,
        file_names(job.reading.source, base, ids),
        np.concatenate(labels) if job.reading.source.labelled(base) else None,
        np.concatenate(found),
    )


def finished(job: Job, folder: Path, shard: Shard) -> bool:
    """Whether a shard is there and whole, and has the images that the data set has now."""
    try:
        index = job.store.index(folder, shard.stem)
    except Exception:  # whatever NumPy and Arrow raise on a missing, short or damaged file
        return False
    (base, start, stop), broken = shard.span, job.reading.unreadable.reasons[shard.span.base]
    ids = [number for number in range(start, stop) if number not in broken]
    return (
        index.id.tolist() == ids
        and index.shape == (len(ids), job.dimension)
        and index.labelled == job.reading.source.labelled(base)
        and index.file == [job.store.text(name) for name in file_names(job.reading.source, base, ids)]
    )


def _open_data(options: argparse.Namespace) -> tuple[Source, dict[str, Span]]:
    """The source, and the span of each split by its name."""
    if sum(given is not None for given in (options.data, options.npz_in, options.folder)) != 1:
        raise UserError("One data set is needed", "Give one of --data=NAME, --folder=DIR and --npz_in=FILE.")
    source = open_source(options.data, data_dir=options.data_dir, npz=options.npz_in, folder=options.folder)
    asked = [source.span(split) for split in (options.splits.split(",") if options.splits else source.splits)]
    spans = {span.base: span for span in asked}
    if len(spans) < len(asked):
        raise UserError(f"--splits={options.splits} names a split twice", "Give each its own --out.")
    return source, spans


def _data_name(options: argparse.Namespace, source: Source) -> str:
    path = options.folder or options.npz_in
    return str(Path(path).expanduser().absolute()) if path else source.name


if __name__ == "__main__":
    sys.exit(main())
