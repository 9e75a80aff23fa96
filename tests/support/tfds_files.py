"""Writes a data set in TFDS form from given records, which may be damaged."""

from collections.abc import Sequence
from pathlib import Path


def write_dataset(folder: Path, name: str, split: str, features, records: Sequence[bytes], *, files: int) -> Path:
    """Writes version 1.0.0 of a data set with one split, in `files` TFRecord files of equal length.

    Args:
      features: the `tfds.features.FeaturesDict` of the data set.
      records: serialized `tf.train.Example`s; their number is a multiple of `files`.

    Returns:
      The folder of the version, below `folder`.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    home, per_file = folder / name / "1.0.0", len(records) // files
    home.mkdir(parents=True)
    for file in range(files):
        path = home / f"{name}-{split}.tfrecord-{file:05d}-of-{files:05d}"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records[per_file * file : per_file * (file + 1)]:
                writer.write(record)
    template = tfds.core.ShardedFileTemplate(dataset_name=name, split=split, filetype_suffix="tfrecord", data_dir="")
    info = tfds.core.SplitInfo(name=split, shard_lengths=[per_file] * files, num_bytes=0, filename_template=template)
    tfds.folder_dataset.write_metadata(data_dir=home, features=features, split_infos=[info], check_data=False)
    return home
