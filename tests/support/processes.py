"""Runs of two processes on this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping

from tests.support.paths import ROOT


def free_address() -> str:
    """A free HOST:PORT of this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def run_two(
    module: str,
    arguments: Callable[[str, int], Iterable[object]],
    *,
    seconds: float = 120,
    environment: Mapping[str, str] | None = None,
) -> list[tuple[int, str, str]]:
    """Runs two processes of `python -m module` and waits for both; kills them after `seconds`.

    Args:
      arguments: arguments(address, process) -> command-line arguments of process 0 or 1; the address is a free one.
      environment: variables to add to those of this process.

    Returns:
      (status, stdout, stderr) of process 0 and of process 1.
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
        outputs = [process.communicate(timeout=seconds) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(running, outputs, strict=True)]
