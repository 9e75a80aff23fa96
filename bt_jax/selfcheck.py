"""Checks that this machine computes rightly: python -m bt_jax.selfcheck

Runs ten small programs on every kind of local device and compares them with stored numbers, which NumPy computed in
float64: the two patterns that releases of XLA are known to compute wrongly (`compilers`), the loss and its gradient
in both forms, batch norm, a LARS norm, convolutions with their gradients, and kNN similarities. It takes a second or
two and needs JAX and NumPy alone. Training, evaluation and embedding run it first, once per version of jaxlib, kind
of device, XLA_FLAGS and float64 setting, and end with one line if a number is wrong.

Exit status 0: all numbers are right; 2: at least one is wrong.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax import compilers, sharding
from bt_jax.cli import tool
from bt_jax.messages import UserError, line
from bt_jax.objectives import barlow_twins

_outcome: dict[str, str] = {}  # of `require` in this process
NUMBERS = Path(__file__).with_name("selfcheck.json")
CODE = (NUMBERS, Path(__file__), Path(barlow_twins.__file__))  # all that the checks are made of

# Allowed error over the largest stored number. Sums in float32 differ by their order: at most 2e-6 was seen on a CPU.
# "matmul": what accelerators compute by default in bfloat16 or TF32, eight to ten bits, but not on a CPU.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12, "matmul": 2e-2}


class Check(NamedTuple):
    """One program.

    Attributes:
      run: takes the inputs as jax arrays, gives one array or several.
      inputs: numpy arrays in float64 whose values float32 represents exactly.
      reduced: True if accelerators compute it with fewer bits, see TOLERANCE.
    """

    name: str
    run: Callable
    inputs: tuple[np.ndarray, ...]
    reduced: bool = False

    def stored_name(self, rows: int) -> str:
        """Its name in selfcheck.json: the program that loses rows is stored once for each `rows`."""
        return f"{self.name}, {rows} rows" if self.name.startswith("vmap") else self.name


class Result(NamedTuple):
    """error: the largest difference from the stored numbers, over the largest of them; infinite if not finite."""

    check: str
    error: float
    tolerance: float

    @property
    def right(self) -> bool:
        return self.error <= self.tolerance


# --------------------------------------------------------------------------------------------------------- the programs


def rows_lost(x, matrix):
    """The pattern of which jaxlib 0.10.2 loses rows."""
    return jax.vmap(lambda row: jnp.square(matrix @ row).sum())(x)


def memory_read(matrix, c):
    """The pattern that reads uninitialised memory."""
    return ((matrix @ jnp.broadcast_to(c, matrix.shape)) * matrix).sum()


def loss(z1, z2, *, form):
    """The loss and its two gradients."""
    return jax.value_and_grad(lambda *z: barlow_twins.barlow_twins(*z, form=form)[0], argnums=(0, 1))(z1, z2)


def batch_norm(x, cotangent):
    """The sum of normalised x (n, h, w, c) times the cotangent, and its gradient by x."""

    def total(x):
        offset = x - x.mean((0, 1, 2))
        return (offset * jax.lax.rsqrt(jnp.square(offset).mean((0, 1, 2)) + barlow_twins.EPS) * cotangent).sum()

    return jax.value_and_grad(total)(x)


def lars(parameter, gradient):
    """A gradient scaled by the trust ratio."""
    return jnp.linalg.norm(parameter) / jnp.linalg.norm(gradient) * gradient


def convolution(x, kernel, cotangent, *, stride):
    """The convolution, and its gradients by x and kernel; NHWC and HWIO."""

    def total(x, kernel):
        padding = [(kernel.shape[0] // 2,) * 2] * 2
        layout = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)
        return (out * cotangent).sum(), out

    (_, out), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(x, kernel)
    return out, *gradients


def similarities(bank, queries):
    """Cosine similarities, as `evals.knn` computes them."""
    bank, queries = (x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (bank, queries))
    return jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)


def checks(rows: int) -> list[Check]:
    """The programs; `rows` is the length at which jaxlib 0.10.2 loses rows: 32,769 in float32, 16,385 in float64."""
    draw = np.random.RandomState(0)  # whose stream is frozen

    def array(*shape):
        return draw.randint(-64, 65, shape) / 64

    column = np.arange(rows, dtype=np.float64)[:, None] / 256
    z1 = array(24, 40)
    z = z1, np.round((z1 + array(24, 40) / 2) * 64) / 64
    image, kernel, pointwise = array(4, 8, 8, 6), array(3, 3, 6, 5), array(1, 1, 6, 5)
    same, halved = array(4, 8, 8, 5), array(4, 4, 4, 5)
    once, twice = (partial(convolution, stride=stride) for stride in (1, 2))
    return [
        Check(
            "vmap of a sum of squares",
            rows_lost,
            (np.concatenate([column, 0 * column, 0 * column], 1), np.eye(3)),
            True,
        ),
        Check("sum((E @ broadcast(c)) * E)", memory_read, (array(64, 64), np.array(0.5))),
        Check("loss and gradients, covariance form", partial(loss, form="covariance"), z),
        Check("loss and gradients, Gram form", partial(loss, form="gram"), z),
        Check("batch norm and its gradient", batch_norm, (array(8, 6, 6, 16), array(8, 6, 6, 16))),
        Check("LARS norms", lars, (array(300, 70), array(300, 70))),
        Check("3x3 convolution, its two gradients", once, (image, kernel, same), reduced=True),
        Check("3x3 convolution, stride 2, its gradients", twice, (image, kernel, halved), reduced=True),
        Check("1x1 convolution, stride 2, its gradients", twice, (image, pointwise, halved), reduced=True),
        Check("kNN similarities", similarities, (array(300, 48), array(20, 48))),
    ]


def digest(array: np.ndarray) -> np.ndarray:
    """At most eight numbers in float64, sums of all elements by weights between 0.5 and 1.5 and signs."""
    flat = np.asarray(array, np.float64).ravel()
    draw = np.random.RandomState(flat.size)
    weights = draw.choice([-1, 1], flat.size) * (0.5 + draw.random_sample(flat.size))
    return np.array([part.sum() for part in np.array_split(flat * weights, min(8, flat.size))])


# ------------------------------------------------------------------------------------------------------------ comparing


def run_on(device) -> list[Result]:
    """Runs all programs on one device.

    Args:
      device: of `jax.local_devices()`.
    """
    stored = json.loads(NUMBERS.read_text())
    wide = bool(jax.config.jax_enable_x64) and device.platform == "cpu"
    dtype, rows = ("float64", 16_385) if wide else ("float32", 32_769)
    results = []
    for check in checks(rows):
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
    return float(np.abs(digest(out) - want).max() / scale)


def kinds() -> list:
    """One local device of each kind."""
    local = [device for device in sharding.all_devices() if device.process_index == jax.process_index()]
    return list({(device.platform, device.device_kind): device for device in local}.values())


def outcome() -> dict[str, str]:
    """Device kind -> "passed" or "passed before", by the last `require` of this process; {} if there was none."""
    return dict(_outcome)


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
            _outcome[device.device_kind] = "passed before"
            continue
        wrong = [result for result in run_on(device) if not result.right]
        if wrong:
            raise _failure(device, wrong)
        _outcome[device.device_kind] = "passed"
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


def _failure(device, wrong: list[Result]) -> UserError:
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


# ---------------------------------------------------------------------------------------------------------- the command


def table(device, results: list[Result]) -> str:
    """The results on one device, a line each."""
    width = max(len(result.check) for result in results)
    head = f"{device.platform}: {device.device_kind}"
    rows = [
        f"  {result.check.ljust(width)}  error {result.error:8.1e}  allowed {result.tolerance:.0e}"
        f"  {'right' if result.right else 'WRONG'}"
        for result in results
    ]
    return "\n".join([head, *rows])


def main(argv: list[str] | None = None) -> int:
    """Prints a table for every kind of device; returns the exit status."""
    started = time.perf_counter()
    try:
        tool.Parser("selfcheck", __doc__).parse_args(argv)
        devices = kinds()
    except UserError as error:
        print(f"bt_jax: {error}", file=sys.stderr)
        return error.status
    print(f"jaxlib {compilers.jaxlib_version()}, Python {sys.version.split()[0]}; reduce fusion: {compilers.state()}")
    failures = []
    for device in devices:
        results = run_on(device)
        print(table(device, results))
        wrong = [result for result in results if not result.right]
        failures += [_failure(device, wrong)] if wrong else []
    print(f"{len(devices)} kind{'s' if len(devices) > 1 else ''} of device in {time.perf_counter() - started:.1f} s")
    for failure in failures:
        print(f"bt_jax: {failure}", file=sys.stderr)
    return 2 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
