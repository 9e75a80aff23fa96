"""Checks the path of a run folder: Orbax and TensorStore misread some paths, and then a checkpoint is lost."""

import os
import re
from pathlib import Path

from bt_jax import storage
from bt_jax.messages import UserError

# TensorStore reads a backslash as a slash. Orbax lists folders by patterns that contain the whole path, unescaped
# (`merge_ocdbt_per_process_files`). So "[1]" matches "1" alone and nothing is merged, and "*" also matches another
# run's folder. etils.epath refuses "**".
READ, WRITTEN = r"\\|\*\*", r"[\[*?\\]"
BUCKETS = ("gs", "s3", "az", "hf")  # of etils.epath, which reads /s3/run as s3://run
LENGTH = 3800  # bytes, of the 4096 that Linux allows; the names below a run folder have up to 200


def check(folder: Path, *, writes: bool = True) -> None:
    """Checks that a local folder can hold checkpoints. Paths in buckets are checked by `storage.parse_path`.

    Args:
      folder: absolute; a symbolic link is not followed.
      writes: False: checkpoints are only read, which allows more paths.

    Raises:
      UserError: the path has a character or a name that Orbax or TensorStore misreads.
    """
    if not storage.in_bucket(folder) and (problem := _path_problem(os.fspath(folder), WRITTEN if writes else READ)):
        printed = os.fspath(folder).encode("utf-8", "backslashreplace").decode()[:300]
        raise UserError(
            f"No checkpoint can be {'written to' if writes else 'read from'} {printed}: {problem}",
            "Name another folder, or a symbolic link to this one that has a plain path.",
        )


def _path_problem(text: str, patterns: str) -> str:
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        return "its path, or the locale, is not UTF-8"
    if match := re.search(patterns, text):
        return f"its path has a {match[0]}, which Orbax misreads"
    names = Path(text).parts
    if len(names) > 1 and names[1] in BUCKETS:
        return f"Orbax reads /{names[1]}/ as {names[1]}://"
    if "gs:" in names:
        return "Orbax reads a folder called gs: as a bucket"
    return f"its path has {length} bytes, more than {LENGTH}" if length > LENGTH else ""
