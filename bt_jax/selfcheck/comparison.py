"""Comparing what every kind of local device computes with the stored numbers, once for the same conditions."""

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from bt_jax import compilers, sharding
from bt_jax.messages import UserError, line
from bt_jax.objectives import barlow_twins
from bt_jax.selfcheck import programs

NUMBERS = Path(__file__).with_name("numbers.json")
# All files that the checks are made of.
CODE = (NUMBERS, *(Path(file) for file in (__file__, programs.__file__, barlow_twins.__file__)))

# Allowed error over the largest stored number. Sums in float32 differ by their order: at most 2e-6 was seen on a CPU.
# "matmul": what accelerators compute by default in bfloat16 or TF32, eight to ten bits, but not on a CPU.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12, "matmul": 2e-2}


class Result(NamedTuple):
    """error: the largest difference from the stored numbers, over the largest of them; infinite if not finite."""

    check: str
    error: float
    tolerance: float

    @property
    def right(self) -> bool:
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
        want = stored[check.stored_name(rows)]
        error = max(_error(out, np.array(numbers)) for out, numbers in zip(outputs, want, strict=True))
        kind = "matmul" if check.reduced and device.platform != "cpu" else dtype
        results.append(Result(check.name, error, TOLERANCE[kind]))
    return results


def _error(out: np.ndarray, want: np.ndarray) -> float:
    if not np.isfinite(out).all():
        return np.inf
    scale = np.abs(want).max()  # a wrong element of ordinary size moves its digest by about this over the root of n
    return float(np.abs(programs.digest(out) - want).max() / scale)


def kinds() -> list:
    """One local device of each kind."""
    local = [device for device in sharding.all_devices() if device.process_index == jax.process_index()]
    return list({(device.platform, device.device_kind): device for device in local}.values())


def require(cache: Path | None) -> None:
    """Checks every kind of local device, unless the cache says that it was right before.

    Args:
      cache: folder of what passed, made if absent; None: check in any case.

    Raises:
      UserError: a device computes wrongly.
    """
    for device in kinds():
        file = cache / f"{_key(device)}.json" if cache else None
        if file and os.path.exists(file):  # where `file.exists()` raises, as for a folder of somebody else's, False
            compilers.checked[device.device_kind] = "passed before"
            continue
        wrong = [result for result in run_on(device) if not result.right]
        if wrong:
            raise failure(device, wrong)
        compilers.checked[device.device_kind] = "passed"
        if file:
            _remember(file, device)


def _key(device) -> str:
    return hashlib.sha256(json.dumps(_conditions(device)).encode()).hexdigest()[:32]


def _conditions(device) -> dict[str, str]:
    """All that a result depends on."""
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
    """What compilers go by: the kind of processor and its instruction sets, as far as this system says them."""
    info = Path("/proc/cpuinfo")
    flags = {text for text in info.read_text().splitlines() if text.startswith("flags")} if info.exists() else set()
    return f"{platform.machine()} {hashlib.sha256(''.join(sorted(flags)).encode()).hexdigest()[:16]}"


def _remember(file: Path, device) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        written = file.with_suffix(f".{os.getpid()}")  # not by `storage`, which needs more than JAX and NumPy
        written.write_text(json.dumps(_conditions(device), indent=2) + "\n")
        written.replace(file)
    except OSError:
        pass  # a cache that cannot be written costs a second at the next start, nothing else


def failure(device, wrong: list[Result]) -> UserError:
    worst = max(wrong, key=lambda result: result.error / result.tolerance)
    others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    cause = (
        f"jaxlib {compilers.jaxlib_version()} computes wrongly on this {device.platform} device ({device.device_kind}):"
        f" {worst.check}{others} is off by {worst.error:.1g} of its size, {worst.tolerance:.0g} is allowed"
    )
    if device.platform == "cpu" and compilers.user_flag():
        fix = f"Take {compilers.user_flag()} out of XLA_FLAGS, or set --{compilers.FLAG}={compilers.SAFE} there."
    elif device.platform == "cpu":
        fix = f"Set XLA_FLAGS=--{compilers.FLAG}={compilers.SAFE}, or install another version of JAX."
    else:
        fix = "Install another version of JAX or of the driver."
    return UserError(
        cause,
        f"{fix} python -m bt_jax.selfcheck lists all checks; --config.self_check=False, or --no_self_check of"
        " bt_jax.embed, skips them.",
    )
