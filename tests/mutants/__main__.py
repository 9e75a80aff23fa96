"""Plants faults one at a time in a copy of the repository and runs the tests that must fail on them.

    python -m tests.mutants                   # all faults: 20 to 30 minutes of one core
    python -m tests.mutants NAME ...          # these faults, or all of a subject: "loss" is loss-sign, loss-eps, ...
    python -m tests.mutants --list            # prints the faults of every file, and the files without a fault

Exit status 0: the tests notice every fault. 1: they miss one, one is stale, or a test fails without a fault.
"""

import argparse
import collections
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .fault import CODE, Fault, StaleError, nodes, planted
from .faults import FAULTS

ROOT = Path(__file__).parents[2]
NOT_COPIED = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs")
SECONDS = 300  # limit for the tests of one fault
NOTICED = "noticed"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="name of a fault, or a subject")
    parser.add_argument("--list", action="store_true", help="print the faults and run nothing")
    parser.add_argument("--trust", action="store_true", help="skip the run of the tests without faults")
    options = parser.parse_args(arguments)
    chosen = [fault for fault in FAULTS if not options.names or is_selected(fault.name, options.names)]
    if not chosen:
        print(f"No fault is named {', '.join(options.names)}. See --list.", file=sys.stderr)
        return 1
    if options.list:
        return print_faults(chosen)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        tree = Path(scratch) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_COPIED))
        environment = test_environment(Path(scratch) / "xla")
        if not options.trust and not pass_without_faults(chosen, tree, environment):
            return 1
        results = []
        for fault in chosen:
            began = time.monotonic()
            result = outcome(fault, tree, environment)
            results.append((fault, result, time.monotonic() - began))
            print(f"{result:12} {results[-1][2]:6.1f} s  {fault.name}", flush=True)
    print(table(results))
    return int(any(result != NOTICED for _, result, _ in results))


def is_selected(name: str, names: list[str]) -> bool:
    """True if `names` has the fault or its subject."""
    return any(f"{name}-".startswith(f"{part}-") for part in names)


def test_environment(cache: Path) -> dict[str, str]:
    """The environment of the tests: one cache of compiled programs for all runs, and data beside the repository.

    Variables of this process have priority.
    """
    shared = ROOT.parent / "shared"
    data = {"BT_JAX_FIXTURES": shared / "fixtures", "TFDS_DATA_DIR": shared / "tfds"}
    added = {name: str(path) for name, path in data.items() if path.is_dir()}
    added |= {"BT_JAX_TEST_CACHE": str(cache), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    added |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    return added | os.environ


def pass_without_faults(faults: list[Fault], tree: Path, environment: dict[str, str]) -> bool:
    """True if all tests pass without a fault. A test that always fails proves nothing."""
    tests = set()
    for fault in faults:
        try:
            tests |= set(nodes(fault, tree))
        except StaleError:
            continue  # `outcome` reports it
    began = time.monotonic()
    try:
        done = pytest(sorted(tests), tree, environment, seconds=SECONDS * 10)
    except subprocess.TimeoutExpired:
        print(f"{len(tests)} tests without a fault: not finished within {SECONDS * 10} s.")
        return False
    print(f"{len(tests)} tests without a fault: status {done.returncode}, {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode:
        print(done.stdout[-3000:])
    return done.returncode == 0


def outcome(fault: Fault, tree: Path, environment: dict[str, str]) -> str:
    """Plants the fault, runs its tests and removes the fault."""
    try:
        path, changed = planted(fault, tree)
        tests = nodes(fault, tree)
    except StaleError as error:
        print(f"  {error}")
        return "STALE"
    before = path.read_text()
    path.write_text(changed)
    try:
        done = pytest(["-x", *tests], tree, environment, seconds=SECONDS)
    except subprocess.TimeoutExpired:
        return "HUNG"
    finally:
        path.write_text(before)
    if done.returncode == 1:
        return NOTICED
    if done.returncode == 0:
        return "NOT NOTICED" if re.search(r"\d+ passed", done.stdout) else "SKIPPED"
    print(done.stdout[-1500:])
    return "NOT RUN"


def pytest(arguments: list[str], tree: Path, environment: dict[str, str], *, seconds: float):
    """Runs tests of a tree. On a timeout, kills them with the processes that they started."""
    running = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=tree,
        env=environment | {"PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        raise
    return subprocess.CompletedProcess(running.args, running.returncode, output)


def print_faults(faults: list[Fault]) -> int:
    """Prints the faults of every file, and the files without a fault."""
    by_file: dict[str, list[Fault]] = {
        path.relative_to(ROOT).as_posix(): [] for path in sorted((ROOT / CODE[0]).rglob("*.py")) if path.stat().st_size
    }
    for fault in faults:
        try:
            file = planted(fault, ROOT)[0].relative_to(ROOT).as_posix()
        except StaleError as error:
            file = f"stale: {error}"
        by_file.setdefault(file, []).append(fault)
    for file, planted_here in by_file.items():
        print(file if planted_here else f"{file}: none")
        for fault in planted_here:
            print(f"  {fault.name:28} {fault.where}: {' '.join(fault.old.split())!r} -> {fault.new!r}")
    print(f"{len(faults)} faults")
    return 0


def table(results: list[tuple[Fault, str, float]]) -> str:
    """The number of faults per outcome, and the faults that no test noticed."""
    counts = collections.Counter(result for _, result, _ in results)
    lines = ["", f"{len(results)} faults, {sum(seconds for *_, seconds in results):.0f} s"]
    lines += [f"  {count:4} {result}" for result, count in sorted(counts.items())]
    lines += [f"{result}: {fault.name} in {fault.where}" for fault, result, _ in results if result != NOTICED]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
