"""Opens the data set of a config and makes its feed."""

import importlib.util

from jax.sharding import Mesh

from bt_jax import messages
from bt_jax.config.pretraining import PretrainData
from bt_jax.config.sections import Data, Run
from bt_jax.data.batches import Feed
from bt_jax.data.device import ResidentFeed
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.broken import UnreadableImages
from bt_jax.data.sources.open_source import open_source
from bt_jax.data.sources.selection import with_mixed
from bt_jax.data.streamed import StreamedFeed
from bt_jax.messages import UserError


def open_data(options: Data, *, labels: bool = True) -> tuple[Source, UnreadableImages]:
    """Opens the data set of `config.data`; returns it and the record of its unreadable images.

    Args:
      labels: False: leave out the labels. A mixed split still takes the same part of every class.
    """
    own_images = options.name == "folder"  # of pretrain_folder; data.npz may then be the cache file of any data set
    if own_images and not (options.folder or options.npz):
        raise UserError("No folder of images is named", "Set --config.data.folder=IMAGES.")
    source = open_source(
        None if own_images else options.name or None,
        data_dir=options.dir or None,
        npz=options.npz or None,
        folder=options.folder or None,
        exif_orientation=options.exif_orientation,
        labels=labels,
        label_hint=isinstance(options, PretrainData),
        say=messages.say,
    )
    source = with_mixed(source, [*options.train_split.split("+"), options.val_split])
    if not labels:
        source = source.without_labels()
    return source, UnreadableImages(source, limit=options.broken_limit, say=messages.say)


def reader_of(options: Data) -> str:
    """The reader of the section: "tensorflow" or "pillow" for streamed images, "" for a data set on the device."""
    if options.on_device:
        return ""
    named = options.name and not (options.folder or options.npz)  # a TFDS data set, which TensorFlow describes
    if options.reader != "auto":
        return options.reader
    return "tensorflow" if named or importlib.util.find_spec("tensorflow") else "pillow"


def make_feed(
    settings: Run, source: Source, mesh: Mesh, broken: UnreadableImages, channels: int, train_split: str = ""
) -> Feed:
    """Makes a feed from the device or from a stream, according to `config.data.on_device`.

    Args:
      broken: records the unreadable images.
      train_split: a split of `source`; by default `config.data.train_split`.
    """
    train_split = train_split or settings.data.train_split
    if settings.data.on_device:
        return ResidentFeed(settings, source, mesh, broken, channels, train_split)
    return StreamedFeed(settings, source, mesh, broken, channels, train_split, reader=reader_of(settings.data))
