"""Opens a data set: the embedded one, a TFDS data set by its name, a folder, or a cache file.

`base` has the interface of a data set. Nothing is downloaded. TensorFlow is imported only for a TFDS data set.
"""

import os
import shlex
from collections.abc import Callable

from bt_jax import messages
from bt_jax.data.sources import orientation
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.image_folder import FolderSource
from bt_jax.data.sources.npz import NpzSource
from bt_jax.data.sources.patterns import PatternsSource
from bt_jax.data.sources.tfds import TfdsSource
from bt_jax.messages import UserError


def open_source(
    name: str | None,
    *,
    data_dir: str | os.PathLike | None = None,
    npz: str | os.PathLike | None = None,
    folder: str | os.PathLike | None = None,
    exif_orientation: str = "auto",
    labels: bool = True,
    label_hint: bool = False,
    say: Callable[[str], None] = messages.show,
) -> Source:
    """Opens a data set and prints its notes; decodes no image.

    Args:
      name: "patterns" (embedded in the package), or a TFDS name: "cifar10", "cifar10:3.0.2", "imagenet2012". With `npz`
        it must be None or the name in the file.
      data_dir: folder of TFDS data sets; None: $TFDS_DATA_DIR, or ~/tensorflow_datasets if that is not set.
      npz: a cache file of `bt-jax prepare`; needs no TensorFlow.
      folder: a folder of images, see `image_folder.FolderSource`; the name is then ignored.
      exif_orientation: "apply" or "ignore"; "auto": apply it to the images of a folder, and of a cache file or shards
        that were written from one.
      labels: False: nothing is said about labels, because the caller takes `Source.without_labels`.
      label_hint: whether the caller has the key that `Source.label_hint` names.
      say: prints a line.

    Raises:
      UserError: the name is unknown, the folder is missing, or the file is damaged.
    """
    source = _open(name, data_dir, npz, folder)
    if exif_orientation != "auto":
        source.upright = exif_orientation == orientation.APPLY
    about_labels = list(source.label_notes if labels else ())
    if about_labels and label_hint:
        about_labels[-1] += source.label_hint
    for note in [*source.notes, *about_labels]:
        say(note)
    return source


def _open(name, data_dir, npz, folder) -> Source:
    if folder is not None:
        return FolderSource(folder)
    if npz is not None:
        source = NpzSource(npz)
        if name is not None and name.split(":")[0] != source.name.split(":")[0]:
            raise UserError(
                f"{npz} holds {source.name!r}, not {name!r}",
                f"Name the file of {name!r}, or set --config.data.name={shlex.quote(source.name)}.",
            )
        return source
    if not name:
        raise UserError("No data set is named", 'Give a name ("patterns", "cifar10", "imagenet2012") or a cache file.')
    return PatternsSource() if name == "patterns" else TfdsSource(name, data_dir)
