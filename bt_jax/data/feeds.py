"""Opens the data set of a config and makes its feed."""

from jax.sharding import Mesh

from bt_jax import messages
from bt_jax.config.sections import Data, Run
from bt_jax.data.batches import Feed
from bt_jax.data.device import ResidentFeed
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.broken import UnreadableImages
from bt_jax.data.sources.open_source import open_source
from bt_jax.data.sources.selection import with_mixed
from bt_jax.data.streamed import StreamedFeed


def open_data(options: Data) -> tuple[Source, UnreadableImages]:
    """Opens the data set of `config.data`; returns it and the record of its unreadable images."""
    source = open_source(
        options.name or None,
        data_dir=options.dir or None,
        npz=options.npz or None,
        folder=options.folder or None,
        say=messages.say,
    )
    source = with_mixed(source, [*options.train_split.split("+"), options.val_split])
    return source, UnreadableImages(source, limit=options.broken_limit, say=messages.say)


def make_feed(
    settings: Run, source: Source, mesh: Mesh, broken: UnreadableImages, channels: int, train_split: str = ""
) -> Feed:
    """Makes a feed from the device or from a stream, according to `config.data.on_device`.

    Args:
      broken: records the unreadable images.
      train_split: a split of `source`; by default `config.data.train_split`.
    """
    make = ResidentFeed if settings.data.on_device else StreamedFeed
    return make(settings, source, mesh, broken, channels, train_split or settings.data.train_split)
