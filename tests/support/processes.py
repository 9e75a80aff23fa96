"""Two processes of one program on this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from tests.support.paths import ROOT


def free_address() -> str:
    """HOST:PORT on this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def run_two(
    module: str,
    arguments: Callable[[str, int], Iterable[object]],
    *,
    ends: Sequence[int] = (0, 1),
    seconds: float = 120,
    environment: Mapping[str, str] | None = None,
) -> list[tuple[int, str, str]]:
    """Runs `python -m module` twice at a time, and kills whichever is left after `seconds` or when `ends` have ended.

    Args:
      arguments: arguments(address, process) of process 0 or 1; both get the same free address.
      ends: the processes that are waited for.
      environment: variables added to this process's.

    Returns:
      (status, stdout, stderr) of each of `ends`.
    """
    address = free_address()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments(address, process))],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | dict(environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        said = [running[process].communicate(timeout=seconds) for process in ends]
    finally:
        for process in running:
            process.kill()
    return [(running[process].returncode, *texts) for process, texts in zip(ends, said, strict=True)]
