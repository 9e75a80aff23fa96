"""Plants faults, one at a time, in a copy of the tree, and runs the tests that must fail.

    python -m tests.mutants                   # all faults: 20 to 30 minutes on one core
    python -m tests.mutants NAME ...          # some faults, or all of a subject: "loss" is loss-sign, loss-eps, ...
    python -m tests.mutants --list            # prints the place of every fault, and the files without a fault

Exit status 0: tests noticed every fault. 1: a fault was not noticed, is stale, or its tests fail without it.
"""

import argparse
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
LEFT_OUT = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs")
SECONDS = 300  # for the tests of one fault
NOTICED = "noticed"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="a fault, or a subject")
    parser.add_argument("--list", action="store_true", help="print the faults and run nothing")
    parser.add_argument("--trust", action="store_true", help="do not run the tests without faults first")
    options = parser.parse_args(arguments)
    chosen = [fault for fault in FAULTS if not options.names or asked(fault.name, options.names)]
    if not chosen:
        print(f"No fault is named {', '.join(options.names)}; --list shows all.", file=sys.stderr)
        return 1
    if options.list:
        return show(chosen)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        tree = Path(scratch) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
        environment = surroundings(Path(scratch) / "xla")
        if not options.trust and not sound(chosen, tree, environment):
            return 1
        results = []
        for fault in chosen:
            began = time.monotonic()
            result = outcome(fault, tree, environment)
            results.append((fault, result, time.monotonic() - began))
            print(f"{result:12} {results[-1][2]:6.1f} s  {fault.name}", flush=True)
    print(table(results))
    return int(any(result != NOTICED for _, result, _ in results))


def asked(name: str, names: list[str]) -> bool:
    """Whether one of the names is that of a fault, or of its subject."""
    return any(f"{name}-".startswith(f"{each}-") for each in names)


def surroundings(cache: Path) -> dict[str, str]:
    """The environment of the tests: one cache of compiled programs for all runs, and the data beside the tree.

    Variables that are set already are not changed.
    """
    shared = ROOT.parent / "shared"
    data = {"BT_JAX_FIXTURES": shared / "fixtures", "TFDS_DATA_DIR": shared / "tfds"}
    wanted = {name: str(path) for name, path in data.items() if path.is_dir()}
    wanted |= {"BT_JAX_TEST_CACHE": str(cache), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    wanted |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    return wanted | os.environ


def sound(faults: list[Fault], tree: Path, environment: dict[str, str]) -> bool:
    """Whether all tests pass without a fault. A test that fails anyway would notice every fault."""
    wanted = set()
    for fault in faults:
        try:
            wanted |= set(nodes(fault, tree))
        except StaleError:
            continue  # `outcome` reports it
    began = time.monotonic()
    try:
        done = pytest(sorted(wanted), tree, environment, seconds=SECONDS * 10)
    except subprocess.TimeoutExpired:
        print(f"{len(wanted)} tests without a fault: not finished within {SECONDS * 10} s")
        return False
    print(
        f"{len(wanted)} tests without a fault: status {done.returncode}, {time.monotonic() - began:.0f} s", flush=True
    )
    if done.returncode:
        print(done.stdout[-3000:])
    return done.returncode == 0


def outcome(fault: Fault, tree: Path, environment: dict[str, str]) -> str:
    """Plants a fault, runs its tests and removes it again; returns its result, such as NOTICED."""
    try:
        path, changed = planted(fault, tree)
        wanted = nodes(fault, tree)
    except StaleError as error:
        print(f"  {error}")
        return "STALE"
    before = path.read_text()
    path.write_text(changed)
    try:
        done = pytest(["-x", *wanted], tree, environment, seconds=SECONDS)
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
    """Runs tests of the tree. If they exceed `seconds`, it kills them and the processes that they have started."""
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
        said, _ = running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        raise
    return subprocess.CompletedProcess(running.args, running.returncode, said)


def show(faults: list[Fault]) -> int:
    """Prints the faults by file, and the files without a fault."""
    by_file: dict[str, list[Fault]] = {
        path.relative_to(ROOT).as_posix(): [] for path in sorted((ROOT / CODE[0]).rglob("*.py")) if path.stat().st_size
    }
    for fault in faults:
        try:
            file = planted(fault, ROOT)[0].relative_to(ROOT).as_posix()
        except StaleError as error:
            file = f"stale: {error}"
        by_file.setdefault(file, []).append(fault)
    for file, found in by_file.items():
        print(file if found else f"{file}: none")
        for fault in found:
            print(f"  {fault.name:28} {fault.where}: {' '.join(fault.old.split())!r} -> {fault.new!r}")
    print(f"{len(faults)} faults")
    return 0


def table(results: list[tuple[Fault, str, float]]) -> str:
    """The number of faults for each result, and the names of those that were not noticed."""
    counts = {result: sum(each == result for _, each, _ in results) for result in {each for _, each, _ in results}}
    lines = ["", f"{len(results)} faults, {sum(seconds for *_, seconds in results):.0f} s"]
    lines += [f"  {count:4} {result}" for result, count in sorted(counts.items())]
    lines += [f"{result}: {fault.name} in {fault.where}" for fault, result, _ in results if result != NOTICED]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
