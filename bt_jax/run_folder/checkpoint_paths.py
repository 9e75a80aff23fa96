"""Which paths Orbax and TensorStore take as they are: elsewhere a checkpoint is lost, or cannot be read."""

import os
import re
from pathlib import Path

from bt_jax import storage
from bt_jax.messages import UserError

# TensorStore takes a backslash for a slash. Orbax lists folders by patterns that hold the whole path, unescaped
# (`merge_ocdbt_per_process_files`): "[1]" then matches "1" alone and nothing is merged, "*" also another run's folder,
# and etils.epath refuses "**".
READ, WRITTEN = r"\\|\*\*", r"[\[*?\\]"
BUCKETS = ("gs", "s3", "az", "hf")  # of etils.epath, which takes /s3/run for s3://run
LENGTH = 3800  # bytes of the 4096 that Linux takes; the names below a run folder have up to 200


def check(folder: Path, *, writes: bool = True) -> None:
    """Refuses a folder of this machine in which no checkpoint can be kept, or read. Buckets have a check of their own.

    Args:
      folder: absolute; a symbolic link is not followed.
      writes: False: a checkpoint there is only read, which needs less.

    Raises:
      UserError: the path has a character, or a name, that Orbax or TensorStore takes for something else.
    """
    if not storage.in_bucket(folder) and (fault := _path_problem(os.fspath(folder), WRITTEN if writes else READ)):
        shown = os.fspath(folder).encode("utf-8", "backslashreplace").decode()[:300]
        raise UserError(
            f"No checkpoint can be {'kept in' if writes else 'read from'} {shown}: {fault}",
            "Name another folder, or a symbolic link to this one that has a plain path.",
        )


def _path_problem(text: str, patterns: str) -> str:
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        return "its path, or the locale, is not UTF-8"
    if found := re.search(patterns, text):
        return f"its path has a {found[0]}, which Orbax takes for something else"
    names = Path(text).parts
    if len(names) > 1 and names[1] in BUCKETS:
        return f"Orbax takes /{names[1]}/ for {names[1]}://"
    if "gs:" in names:
        return "Orbax takes a folder called gs: for a bucket"
    return f"its path has {length} bytes, more than {LENGTH}" if length > LENGTH else ""
