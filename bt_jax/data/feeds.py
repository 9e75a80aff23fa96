"""Opens the images of a config."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import messages
from bt_jax.data.batches import Feed
from bt_jax.data.device import ResidentFeed
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.broken import Broken
from bt_jax.data.sources.open_source import open_source
from bt_jax.data.streamed import StreamedFeed


def open_data(config: ConfigDict) -> tuple[Source, Broken]:
    """The data set of `config.data`, and the record of its unreadable images."""
    source = open_source(
        config.data.name or None,
        data_dir=config.data.dir or None,
        npz=config.data.npz or None,
        folder=config.data.folder or None,
    )
    return source, Broken(source, limit=config.data.broken_limit, say=messages.say)


def make_feed(
    config: ConfigDict, source: Source, mesh: Mesh, broken: Broken, channels: int, train_split: str = ""
) -> Feed:
    """On the device or streamed, as the config says.

    Args:
      broken: records the unreadable images.
      train_split: of `source`; the config's by default.
    """
    make = ResidentFeed if config.data.on_device else StreamedFeed
    return make(config, source, mesh, broken, channels, train_split or config.data.train_split)
