"""The environment of a run for environment.json: versions, devices, git commit and command line."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import jax

from bt_jax import compilers

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow", "tensorflow-datasets")


def describe() -> dict:
    """Versions, devices, git commit and command line of this process."""
    return {
        "command": [Path(sys.executable).name, *sys.orig_argv[1:]],
        "git_commit": git_commit(),
        "versions": versions(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "reduce_fusion": compilers.state(),
        "self_check": compilers.checked or "left out",
        "devices": [f"{device.id}: {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
    }


def versions() -> dict[str, str]:
    """{name: version} of the installed PACKAGES."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def git_commit() -> str:
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() or "unknown"
