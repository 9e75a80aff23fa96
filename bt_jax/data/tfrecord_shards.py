"""TFRecord shards in TFDS form, for storage that is fast only in sequence, such as gs:// and network disks."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bt_jax import storage
from bt_jax.data.order import permutation
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.tfds import UPRIGHT, tensorflow, tensorflow_datasets
from bt_jax.messages import UserError, progress
from bt_jax.terminal import interrupts

RECORDS = 1024  # in a shard: about 110 MB of ImageNet JPEGs; TFDS aims at 150 MB
VERSION = "1.0.0"


def write_shards(source: Source, data_dir: str | os.PathLike, name: str, splits: Sequence[str]) -> Path:
    """Writes whole splits as a data set of a TFDS folder, without re-encoding; it appears complete or not at all.

    The records are in a random order, a function of the split's size alone, so that reading shards in sequence mixes
    the classes of a folder that is sorted by class. An unreadable image keeps its position and is unreadable in the
    shards too.

    Returns:
      DATA_DIR/NAME/1.0.0.

    Raises:
      UserError: TensorFlow is not installed, the data set exists already, or the folder cannot be written.
    """
    if name == "patterns":
        raise UserError("'patterns' is the name of the embedded data set", "Choose another name.")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name!r} is not a data set name", "Use small letters, digits and _, e.g. my_images.")
    tf, tfds = tensorflow(), tensorflow_datasets()
    final = storage.local_path(data_dir) / name / VERSION
    if final.exists():
        raise UserError(f"{final} exists already", "Choose another name, or delete it.")
    partial = final.with_name(f".{VERSION}.{os.getpid()}.tmp")
    labels = tfds.features.ClassLabel(names=source.class_names or [str(i) for i in range(source.num_classes)])
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image()} | ({"label": labels} if source.all_or_none_labelled(splits) else {})
    )
    try:
        with interrupts.tidied(lambda: storage.remove_folder(partial)):
            partial.mkdir(parents=True)
            infos = []
            for split in splits:
                lengths = _write_split(tf, source, split, partial, name)
                template = tfds.core.ShardedFileTemplate(
                    dataset_name=name, data_dir=partial, split=split, filetype_suffix="tfrecord"
                )
                size = sum(file.stat().st_size for file in partial.glob(f"{name}-{split}.tfrecord-*"))
                infos.append(
                    tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)
                )
            tfds.folder_dataset.write_metadata(
                data_dir=partial,
                features=features,
                split_infos=infos,
                version=VERSION,
                check_data=False,
                metadata=tfds.core.MetadataDict({UPRIGHT: source.upright}),
            )
            partial.rename(final)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(
            f"Cannot write {final}: {reason}", "Choose a writable folder on a disk with free space."
        ) from None
    return final


def _write_split(tf, source: Source, split: str, folder: Path, name: str) -> list[int]:
    """Writes a split; returns the number of records of each shard."""
    if split not in source.splits or not re.fullmatch(r"\w+", split):  # no S.mixed: shards are shuffled anyway
        whole = [name for name in sorted(source.splits) if re.fullmatch(r"\w+", name)]
        raise UserError(
            f"{source.name} has no whole split {split!r} to write", f"Name whole splits: {', '.join(whole)}."
        )
    count = source.splits[split]
    order, labelled = permutation(count, 0, 0), source.labelled(split)
    shards = [order[first : first + RECORDS] for first in range(0, count, RECORDS)]
    records = progress(_records(source, split, shards), f"writing {split}", count)
    for number, shard in enumerate(shards):
        path = folder / f"{name}-{split}.tfrecord-{number:05d}-of-{len(shards):05d}"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _ in shard:
                data, label = next(records)
                example = tf.train.Example()
                example.features.feature["image"].bytes_list.value.append(data)
                if labelled:
                    example.features.feature["label"].int64_list.value.append(-1 if label is None else label)
                writer.write(example.SerializeToString())
    return [len(shard) for shard in shards]


def _records(source: Source, split: str, shards: list) -> Iterable[tuple[bytes, int | None]]:
    for shard in shards:
        for first in range(0, len(shard), 64):
            records = source.try_read(split, [int(i) for i in shard[first : first + 64]])
            yield from ((b"" if isinstance(data, UserError) else data, label) for data, label in records)
