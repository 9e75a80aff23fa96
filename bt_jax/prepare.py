"""Checks a data set before a long run, and writes it as one cache file that needs no TensorFlow.

    bt-jax prepare --data=cifar10 --data_dir=DIR                       # check only
    bt-jax prepare --data=cifar10 --data_dir=DIR --npz=cifar10.npz     # check, then write
    bt-jax prepare --npz_in=cifar10.npz                                # check a cache file
    bt-jax prepare --folder=DIR                                        # check a folder of images
    bt-jax prepare --folder=DIR --shards=OUT/NAME                      # and write it as TFRecord shards

Reads every image of every split. Prints counts, sizes and classes, the files that were left out, and the unreadable
images by file or id, with the reason. Up to --broken_limit, as in training, they are no error: they are written as they
are, or empty if they have no bytes, and training replaces them.
Exit status 0: training accepts the images, and everything is written; 2: an error, with one line on stderr; 130:
stopped by Ctrl-C, with no partial file.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence

from bt_jax import storage
from bt_jax.cli import tool
from bt_jax.data.sources import orientation
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.broken import allowed, enough
from bt_jax.data.sources.checking import CheckedImage, check_images
from bt_jax.data.sources.npz import refuse_foreign, write_npz
from bt_jax.data.sources.open_source import open_source
from bt_jax.data.sources.selection import with_mixed
from bt_jax.messages import UserError, counted, progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    return tool.run(parser(), run, arguments)


def run(options: argparse.Namespace) -> None:
    """Checks the splits and writes the requested files. UserError for anything that the user can fix."""
    if sum(option is not None for option in (options.data, options.npz_in, options.folder)) != 1:
        raise UserError("One data set is needed", "Give one of --data=NAME, --folder=DIR and --npz_in=FILE.")
    source = open_source(
        options.data,
        data_dir=options.data_dir,
        npz=options.npz_in,
        folder=options.folder,
        exif_orientation=options.exif_orientation,
    )
    if options.npz:
        refuse_foreign(storage.local_path(options.npz), source.name)  # first, because reading all images takes long
    splits = options.splits.split(",") if options.splits else list(source.splits)
    source = with_mixed(source, splits)
    unreadable = {split: check(source, split) for split in splits}
    for split, images in unreadable.items():
        for image in images:
            print(f"unreadable: {source.where(source.span(split).base, image.id)}: {image.reason}")
    _refuse(options, source, unreadable)
    if options.npz:
        path = storage.local_path(options.npz)
        write_npz(source, path, splits)
        print(f"wrote {storage.printable(path)}: {path.stat().st_size / 1e6:.1f} MB")
    if options.shards:
        from bt_jax.data.tfrecord_shards import write_shards  # imported here: it needs TensorFlow

        data_dir, name = os.path.split(storage.local_path(options.shards))
        print(f"wrote {storage.printable(write_shards(source, data_dir, name, splits))}")
        print(f"train with --config.data.name={name} --config.data.dir={storage.printable(data_dir)}")


def _refuse(options: argparse.Namespace, source: Source, unreadable: dict[str, list[CheckedImage]]) -> None:
    """UserError if more images of a split are unreadable than the limit, which is that of training."""
    for split, images in unreadable.items():
        span = source.span(split)
        count = span.stop - span.start
        if len(images) > allowed(options.broken_limit, count):
            share = enough(len(images), count)
            allow = f", or allow them with --broken_limit={share}, and in training --config.data.broken_limit={share}"
            allow *= len(images) < count
            raise UserError(
                f"{len(images)} of the {count} images of {source.name}, split {span.base!r}, cannot be read; they"
                " are listed above",
                f"Restore them from a copy{allow}.",
            )
    if total := sum(map(len, unreadable.values())):
        subject, them = ("it is", "it") if total == 1 else ("they are", "them")
        written = f"{subject} written too, so that ids stay, and " if options.npz or options.shards else ""
        print(f"{counted(total, 'image')} cannot be read: {written}training replaces {them}")


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
    parser.add_argument(
        "--npz",
        metavar="FILE",
        help="write the splits to this cache file; replaces only a cache file of the same data set",
    )
    parser.add_argument(
        "--shards", metavar="DIR/NAME", help="write the splits as TFRecord shards, the TFDS data set NAME in DIR"
    )
    parser.add_argument(
        "--exif_orientation",
        choices=orientation.CHOICES,
        default="auto",
        help="turn photographs upright; auto: those of a folder, and of a file or shards written from one. What is"
        " written keeps the original bytes and records this for its readers (default: auto)",
    )
    parser.add_argument("--splits", metavar="A,B", help="the splits to check and write (default: all)")
    parser.add_argument(
        "--broken_limit",
        metavar="SHARE",
        type=float,
        default=0.01,
        help="share of a split's images that may be unreadable, 0: none, 1: all; any other share allows at least 10"
        " images, but fewer than all (default: 0.01)",
    )
    return parser


def check(source: Source, split: str) -> list[CheckedImage]:
    """Decodes a split, prints one line about it, and returns its unreadable images."""
    span = source.span(split)
    count, unreadable, sizes, labels = span.stop - span.start, [], Counter(), Counter()
    for image in progress(check_images(source, span), f"checking {split}", count):
        if image.size:
            sizes[image.size] += 1
        else:
            unreadable.append(image)
        labels.update([] if image.label is None else [image.label])
    print(f"{split}: {count} images, {_summary(source, sizes, labels)}, {len(unreadable)} unreadable")
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
