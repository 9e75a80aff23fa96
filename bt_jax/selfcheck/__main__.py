"""Checks that this machine computes correctly: bt-jax selfcheck

The self-check runs ten small programs on every kind of local device, and compares their results with stored numbers,
which NumPy computed in float64. The programs are the two patterns that some releases of XLA compute wrongly
(`compilers`), the loss and its gradient in both forms, batch norm, a LARS norm, convolutions with their gradients, and
kNN similarities. It takes a second or two and needs JAX and NumPy alone.

Training, evaluation and embedding begin with the self-check, once for each version of jaxlib, kind of device,
XLA_FLAGS and float64 setting. If a number is wrong, they exit with one line.

Exit status 0: all numbers are correct; 2: at least one is wrong.
"""

import sys
import time

from bt_jax import compilers, messages
from bt_jax.cli import jax_settings, tool
from bt_jax.messages import UserError
from bt_jax.selfcheck import comparison
from bt_jax.selfcheck.comparison import Result


def table(device, results: list[Result]) -> str:
    """The results on one device, one line for each check."""
    width = max(len(result.check) for result in results)
    title = f"{device.platform}: {device.device_kind}"
    rows = [
        f"  {result.check.ljust(width)}  error {result.error:8.1e}  allowed {result.tolerance:.0e}"
        f"  {'correct' if result.correct else 'WRONG'}"
        for result in results
    ]
    return "\n".join([title, *rows])


@messages.lasting()
def main(argv: list[str] | None = None) -> int:
    """Prints a table for every kind of device; returns the exit status."""
    started = time.perf_counter()
    try:
        tool.Parser("selfcheck", __doc__).parse_args(argv)
        jax_settings.settle(keep="jax_enable_x64")  # float64 has its own stored numbers
        devices = comparison.devices_of_each_kind()
    except UserError as error:
        print(f"bt_jax: {error}", file=sys.stderr)
        return error.status
    print(f"jaxlib {compilers.jaxlib_version()}, Python {sys.version.split()[0]}; reduce fusion: {compilers.state()}")
    failures = []
    for device in devices:
        results = comparison.run_on(device)
        print(table(device, results))
        wrong = [result for result in results if not result.correct]
        failures += [comparison.failure(device, wrong)] if wrong else []
    print(f"{len(devices)} kind{'s' if len(devices) > 1 else ''} of device in {time.perf_counter() - started:.1f} s")
    for failure in failures:
        print(f"bt_jax: {failure}", file=sys.stderr)
    return 2 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
