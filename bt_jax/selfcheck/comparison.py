"""Compares the results of every kind of local device with the stored numbers, once for the same conditions."""

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from bt_jax import compilers, messages, sharding
from bt_jax.messages import UserError, line
from bt_jax.objectives import barlow_twins
from bt_jax.selfcheck import programs

NUMBERS = Path(__file__).with_name("numbers.json")
# The files of the checks: a change of one makes the next start check again.
CODE = (NUMBERS, *(Path(file) for file in (__file__, programs.__file__, barlow_twins.__file__)))

# Allowed error, as a fraction of the largest stored number. Sums in float32 depend on their order: the largest error on
# a CPU was 2e-6. "matmul" is for products that accelerators compute by default in bfloat16 or TF32, with eight to ten
# bits. A CPU computes them in float32.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12, "matmul": 2e-2}


class Result(NamedTuple):
    """The result of one check.

    Attributes:
      check: its name.
      error: the largest difference from the stored numbers, as a fraction of the largest of them. Infinite if an
        output is not finite.
      tolerance: the allowed error.
    """

    check: str
    error: float
    tolerance: float

    @property
    def correct(self) -> bool:
        return self.error <= self.tolerance


def run_on(device) -> list[Result]:
    """Runs all programs on one device.

    Args:
      device: of `jax.local_devices()`.
    """
    stored = json.loads(NUMBERS.read_text())
    wide = bool(jax.config.jax_enable_x64) and device.platform == "cpu"
    dtype, rows = ("float64", 16_385) if wide else ("float32", 32_769)
    results = []
    for check in programs.checks(rows):
        inputs = [jax.device_put(array.astype(dtype), device) for array in check.inputs]
        outputs = jax.device_get(jax.tree.leaves(compilers.jit(check.run)(*inputs)))
        expected = stored[check.stored_name(rows)]
        error = max(_error(out, np.array(numbers)) for out, numbers in zip(outputs, expected, strict=True))
        kind = "matmul" if check.reduced and device.platform != "cpu" else dtype
        results.append(Result(check.name, error, TOLERANCE[kind]))
    return results


def _error(out: np.ndarray, expected: np.ndarray) -> float:
    if not np.isfinite(out).all():
        return np.inf
    scale = np.abs(expected).max()  # one wrong element of typical size changes the digest by about scale / sqrt(n)
    return float(np.abs(programs.digest(out) - expected).max() / scale)


def devices_of_each_kind() -> list:
    """One local device of each kind."""
    local = [device for device in sharding.all_devices() if device.process_index == jax.process_index()]
    return list({(device.platform, device.device_kind): device for device in local}.values())


def require(cache: Path | None) -> None:
    """Checks every kind of local device, unless the cache has a record that it passed before.

    Args:
      cache: folder for the records, created if absent; None checks in any case.

    Raises:
      UserError: a device computes wrongly.
    """
    for device in devices_of_each_kind():
        file = cache / f"{_key(device)}.json" if cache else None
        # os.path.exists returns False for a folder without access, for which `file.exists()` raises an error.
        if file and os.path.exists(file):
            compilers.checked[device.device_kind] = "passed before"
            continue
        messages.say(f"checking that {device.device_kind} computes correctly, once on this machine")
        wrong = [result for result in run_on(device) if not result.correct]
        if wrong:
            raise failure(device, wrong)
        compilers.checked[device.device_kind] = "passed"
        if file:
            _record(file, device)


def _key(device) -> str:
    return hashlib.sha256(json.dumps(_conditions(device)).encode()).hexdigest()[:32]


def _conditions(device) -> dict[str, str]:
    """The conditions of a result. If one changes, the next start checks again."""
    return {
        "jax": jax.__version__,
        "jaxlib": compilers.jaxlib_version(),
        "processor": processor(),
        "platform_version": line(device.client.platform_version),
        "device": f"{device.platform} {device.device_kind}",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "fusion": compilers.state(),
        "x64": str(jax.config.jax_enable_x64),
        "checks": hashlib.sha256(b"".join(file.read_bytes() for file in CODE)).hexdigest(),
    }


def processor() -> str:
    """The kind of processor and a hash of its instruction sets, on which compilers depend. Only Linux has the sets."""
    info = Path("/proc/cpuinfo")
    flags = {text for text in info.read_text().splitlines() if text.startswith("flags")} if info.exists() else set()
    return f"{platform.machine()} {hashlib.sha256(''.join(sorted(flags)).encode()).hexdigest()[:16]}"


def _record(file: Path, device) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")  # without `storage`, which needs more than JAX and NumPy
        temporary.write_text(json.dumps(_conditions(device), indent=2) + "\n")
        temporary.replace(file)
    except OSError:
        pass  # without a cache, the next start takes a second longer


def failure(device, wrong: list[Result]) -> UserError:
    """The error for the wrong results of a device; it names the worst."""
    worst = max(wrong, key=lambda result: result.error / result.tolerance)
    others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    cause = (
        f"jaxlib {compilers.jaxlib_version()} computes wrongly on this {device.platform} device ({device.device_kind}):"
        f" {worst.check}{others} has a relative error of {worst.error:.1g}, and {worst.tolerance:.0g} is allowed"
    )
    if device.platform == "cpu" and compilers.user_flag():
        fix = f"Remove {compilers.user_flag()} from XLA_FLAGS, or set --{compilers.FLAG}={compilers.SAFE} there."
    elif device.platform == "cpu":
        fix = f"Set XLA_FLAGS=--{compilers.FLAG}={compilers.SAFE}, or install another version of JAX."
    else:
        fix = "Install another version of JAX or of the driver."
    return UserError(
        cause,
        f"{fix} To list all checks, run bt-jax selfcheck. To skip them, set --config.self_check=False, or"
        " --no_self_check for bt-jax embed.",
    )
