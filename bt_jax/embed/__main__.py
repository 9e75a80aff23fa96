"""Writes the features of every image of a data set, with its id, file and label, in order and in shards.

    bt-jax embed --encoder=runs/mine --folder=IMAGES --out=features                  # a folder of images
    bt-jax embed --encoder=runs/mine --data=cifar10 --splits=test --out=features     # a TFDS data set
    bt-jax embed --encoder=runs/mine/checkpoints/8000 --npz_in=mine.npz --out=features --format=parquet

Each image comes once, in the view of the evaluation: resized, centre-cropped, normalised as in training. The files of
shard 0 of 5 of the split "train":

    --format=npy      train/features-00000-of-00005.npy   float32 (n, d)
                      train/ids-00000-of-00005.npy        int64 (n,): position of the image in the whole split
                      train/files-00000-of-00005.npy      str (n,): its path below --folder; otherwise SPLIT/ID
                      train/labels-00000-of-00005.npy     int32 (n,), only if the split has labels
    --format=parquet  train/embeddings-00000-of-00005.parquet with the columns id, file, label and feature
    embed.json        encoder, data, dimension, counts, versions, command
    broken.txt        the unreadable images: split, id, file and reason, tab-separated

Unreadable images have no row. Their shards are shorter, and `ids` names the images of each row.

The same command resumes: it keeps intact shards and writes damaged ones again. To write an intact shard again, for
example after images were restored, delete it. Further splits may be added later.
If all images of a shard have one size of up to --canvas pixels, Pillow decodes them. The images of other shards are
streamed, by TensorFlow if it is installed, otherwise by Pillow.

Exit status 0: everything is written; 2: an error, with one line on stderr; 130: stopped by Ctrl-C.
"""

import argparse
import sys
from collections.abc import Sequence

from bt_jax.cli import jax_settings, tool
from bt_jax.data.sources import orientation
from bt_jax.embed import shards
from bt_jax.embed.record import CANVAS
from bt_jax.weights import load


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    stopped = "stopped. Run the same command to resume after the last complete shard."
    return tool.run(parser(), _run, arguments, stopped=stopped)


def _run(options: argparse.Namespace) -> None:
    jax_settings.settle()
    shards.run(options)


def parser() -> tool.Parser:
    parser = tool.Parser("embed", __doc__)
    add = parser.add_argument
    add(
        "--encoder",
        metavar="PATH",
        required=True,
        help="a run folder (its newest checkpoint), RUN/checkpoints/STEP, or weights that bt-jax convert reads",
    )
    add("--data", metavar="NAME", help='"patterns", or a TFDS name such as cifar10, cifar10:3.0.2, imagenet2012')
    add(
        "--data_dir",
        metavar="DIR",
        help="folder of TFDS data sets (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )
    add("--folder", metavar="DIR", help="a folder of images instead of a named data set")
    add("--npz_in", metavar="FILE", help="a cache file of bt-jax prepare instead of a named data set")
    add(
        "--exif_orientation",
        choices=orientation.CHOICES,
        default="auto",
        help="turn photographs upright; auto: those of a folder, and of a cache file or shards written from one"
        " (default: auto)",
    )
    add("--splits", metavar="A,B", help='the splits, whole or cut like "train[:1000]" (default: all)')
    add(
        "--out",
        metavar="DIR",
        required=True,
        help="the folder to write to; made if absent, resumed if it holds the same features",
    )
    add("--format", choices=("npy", "parquet"), default="npy", help="format of the shards (default: npy)")
    add("--shard", metavar="N", type=int, default=10_000, help="images in a shard (default: 10000)")
    add(
        "--size",
        metavar="PIXELS",
        type=int,
        help=f"side of the encoder's input images (default: that of the run or of an export, else {load.SIZE})",
    )
    add(
        "--resize",
        metavar="PIXELS",
        type=int,
        help="shorter side before the centre crop; 0: --size (default: that of the run or of the export, else 256,"
        " scaled with --size)",
    )
    add(
        "--canvas",
        metavar="PIXELS",
        type=int,
        help="streamed images with a longer side are shrunk to this while decoding (default: that of the run, or"
        f" {CANVAS} without a run)",
    )
    add("--no_self_check", action="store_true", help="skip the check that this machine computes correctly")
    add(
        "--batch_size",
        metavar="N",
        type=int,
        default=256,
        help="of all devices, rounded up to a multiple of them (default: 256)",
    )
    add(
        "--broken_limit",
        metavar="SHARE",
        type=float,
        default=0.01,
        help="share of a split's images that may be unreadable, 0: none, 1: all; any other share allows at least 10"
        " images, but fewer than all (default: 0.01)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
