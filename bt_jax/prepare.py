"""Checks a data set before a long run, and writes it as one cache file that needs no TensorFlow.

    python -m bt_jax.prepare --data=cifar10 --data_dir=DIR                       # check only
    python -m bt_jax.prepare --data=cifar10 --data_dir=DIR --npz=cifar10.npz     # check, then write
    python -m bt_jax.prepare --npz_in=cifar10.npz                                # check a cache file
    python -m bt_jax.prepare --folder=DIR                                        # check a folder of images
    python -m bt_jax.prepare --folder=DIR --shards=OUT/NAME                      # and write it as TFRecord shards

Reads every image of every split: counts, sizes, classes, unreadable images by file or id. Exit status 0: all is well;
2: it is not, with one line on stderr. Nothing is written from a data set with unreadable images.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from bt_jax.cli import tool
from bt_jax.data.sources.base import Source, progress
from bt_jax.data.sources.decode import cores, try_decode
from bt_jax.data.sources.npz import write_npz
from bt_jax.data.sources.open_source import open_source
from bt_jax.messages import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    return tool.run(parser(), run, arguments)


def run(options: argparse.Namespace) -> None:
    """Checks the splits and writes what is asked for. UserError for anything the user can fix."""
    if sum(given is not None for given in (options.data, options.npz_in, options.folder)) != 1:
        raise UserError("one data set is needed", "Give one of --data=NAME, --folder=DIR and --npz_in=FILE")
    source = open_source(options.data, data_dir=options.data_dir, npz=options.npz_in, folder=options.folder)
    splits = options.splits.split(",") if options.splits else list(source.splits)
    unreadable = {split: check(source, split) for split in splits}
    count = sum(map(len, unreadable.values()))
    if count:
        for split, ids in unreadable.items():
            for number in ids:
                print(f"unreadable: {source.where(split, number)}")
        raise UserError(f"{source.name} has {count} unreadable images, listed above", "Restore them from their origin")
    if options.npz:
        write_npz(source, options.npz, splits)
        print(f"wrote {options.npz}: {os.path.getsize(options.npz) / 1e6:.1f} MB")
    if options.shards:
        from bt_jax.data.tfrecord_shards import write_shards  # imported here: it needs TensorFlow

        data_dir, name = os.path.split(os.path.abspath(options.shards))
        print(f"wrote {write_shards(source, data_dir, name, splits)}")
        print(f"train with --config.data.name={name} --config.data.dir={data_dir}")


def parser() -> tool.Parser:
    parser = tool.Parser("prepare", __doc__)
    parser.add_argument(
        "--data", metavar="NAME", help='"patterns", or a TFDS name such as cifar10, cifar10:3.0.2, imagenet2012'
    )
    parser.add_argument(
        "--data_dir",
        metavar="DIR",
        help="folder of TFDS data sets (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )
    parser.add_argument("--folder", metavar="DIR", help="check this folder of images instead of a named data set")
    parser.add_argument("--npz_in", metavar="FILE", help="check this cache file instead of a named data set")
    parser.add_argument("--npz", metavar="FILE", help="write the splits to this cache file")
    parser.add_argument(
        "--shards", metavar="DIR/NAME", help="write the splits as TFRecord shards, the TFDS data set NAME in DIR"
    )
    parser.add_argument("--splits", metavar="A,B", help="the splits to check and write (default: all)")
    return parser


def check(source: Source, split: str) -> list[int]:
    """Decodes a split, prints one line about it, and returns the ids of its unreadable images."""
    span = source.span(split)
    records = progress(source.encoded(split), f"checking {split}", span.stop - span.start)
    number, unreadable, sizes, labels = span.start, [], Counter(), Counter()
    with ThreadPoolExecutor(cores()) as pool:
        while chunk := list(islice(records, 256)):
            for result, (_, label) in zip(pool.map(try_decode, [data for data, _ in chunk]), chunk, strict=True):
                if isinstance(result, Exception):
                    unreadable.append(number)
                else:
                    sizes[result.shape[1::-1]] += 1
                labels.update([] if label is None else [label])
                number += 1
    print(f"{split}: {number - span.start} images, {_summary(source, sizes, labels)}, {len(unreadable)} unreadable")
    return unreadable


def _summary(source: Source, sizes: Counter, labels: Counter) -> str:
    widths, heights = zip(*sizes, strict=True) if sizes else ((0,), (0,))
    if len(sizes) == 1:
        size = f"all {widths[0]}x{heights[0]}"
    else:
        size = f"{min(widths)}x{min(heights)} to {max(widths)}x{max(heights)}"
    if labels:
        counts = labels.values()
        classes = f"{len(labels)} of {source.num_classes} classes, {min(counts)} to {max(counts)} each"
    else:
        classes = "no labels"
    return f"{size}, {classes}"


if __name__ == "__main__":
    sys.exit(main())
