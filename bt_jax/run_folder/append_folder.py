"""Files for appending, such as metrics.jsonl, on a disk or in a bucket. Objects of a bucket cannot be appended to."""

import shutil
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from bt_jax import storage
from bt_jax.messages import line


class AppendFolder:
    """A folder with files for appending. If it is in a bucket, a local folder holds them, which is copied regularly.

    Attributes:
      local: the folder to write to.
    """

    def __init__(self, folder: Path, names: tuple[str, ...]):
        """`names`: files to continue, if they exist."""
        self._folder, self._copies = folder, storage.in_bucket(folder)
        self.local = Path(tempfile.mkdtemp(prefix="bt_jax-")) if self._copies else folder
        if not self._copies:
            return
        for name in names:
            if (content := storage.read(folder / name)) is not None:
                (self.local / name).write_bytes(content)
        self._copied: dict[str, tuple[int, int]] = {}
        self._thread, self._copying = ThreadPoolExecutor(1, "bucket"), Future()
        self._copying.set_result(None)
        self._next = time.monotonic() + storage.COPY_INTERVAL_SECONDS

    def copy_if_due(self) -> None:
        """Copies changed files in the background, if the last copy is storage.COPY_INTERVAL_SECONDS old."""
        if self._copies and self._copying.done() and time.monotonic() > self._next:
            if error := self._copying.exception():
                self._warn(error)
            self._copying, self._next = (
                self._thread.submit(self._copy),
                time.monotonic() + storage.COPY_INTERVAL_SECONDS,
            )

    def sync(self) -> None:
        """Copies changed files and waits until they are in the bucket."""
        if self._copies:
            self._thread.submit(self._copy).result()

    def close(self) -> None:
        """Copies for the last time. A failure is only a warning, because another error may be ending the run."""
        if self._copies:
            try:
                self.sync()
                shutil.rmtree(self.local, ignore_errors=True)
            except Exception as error:  # gcsfs has no base class for its errors
                self._warn(error)
                print(f"The newest lines are in {self.local}", file=sys.stderr)
            self._thread.shutdown()

    def _warn(self, error: BaseException) -> None:
        print(f"WARNING: the newest lines could not be written to {self._folder}: {line(error)}", file=sys.stderr)

    def _copy(self) -> None:
        for name in storage.files_below(self.local):
            path = self.local / name
            now = (path.stat().st_size, path.stat().st_mtime_ns)
            if self._copied.get(name) != now:
                (self._folder / name).write_bytes(path.read_bytes())
                self._copied[name] = now
