"""Every file of a checkpoint truncated, with a flipped bit, or deleted in turn; then the run is opened again.

    python -m tests.drills.damage [--out=FILE.json]

Two checkpoints of a small state are written as a run writes them, at steps 1 and 2; each file of the newer one is
damaged in each way. What may come out: the newer state, bit for bit (the file is not needed), or the older one, with a
line that names the damaged file (of the manifest: it, or a file that it now describes wrongly). Anything else is
counted as lost. Exit status 0 only where nothing is.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bt_jax.state import TrainState
from tests.support.damage import WAYS, equal, reopened, write_run


def outcome(folder: Path, states: list[TrainState], name: str) -> str:
    """How a run with that damaged file in its newer checkpoint goes on: "right", "previous", or what went wrong."""
    older, newer = states
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            checkpoints = reopened(folder)
            step = checkpoints.latest()
            found = checkpoints.restore(newer, step)
            checkpoints.close()
    except Exception as error:
        return f"failed: {type(error).__name__}"
    if equal(found, newer):
        return "right"
    named = name in said.getvalue() or "manifest.json" in said.getvalue()
    if name == "manifest.json":  # a bit in it may alter what it says of another file, which is then named
        named |= "checkpoint 2 is damaged" in said.getvalue()
    return "previous" if equal(found, older) and named else "lost"


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    table: dict[str, Counter] = {way.__name__: Counter() for way in WAYS}
    failures = []
    with tempfile.TemporaryDirectory() as scratch:
        states = write_run(Path(scratch) / "run")
        newest = Path(scratch) / "run" / "checkpoints" / "2"
        names = sorted(path.relative_to(newest).as_posix() for path in newest.rglob("*") if path.is_file())
        for name in names:
            for way in WAYS:
                copy = Path(scratch) / "copy"
                shutil.copytree(Path(scratch) / "run", copy)
                way(copy / "checkpoints" / "2" / name)
                found = outcome(copy, states, name)
                table[way.__name__][found] += 1
                if found not in ("right", "previous"):
                    failures.append(f"{way.__name__} {name}: {found}")
                shutil.rmtree(copy)
    outcomes = sorted({found for counts in table.values() for found in counts})
    print(f"{len(names)} files  " + "  ".join(f"{found:>10}" for found in outcomes))
    for way, counts in table.items():
        print(f"{way:9} " + "  ".join(f"{counts[found]:>10}" for found in outcomes))
    print(*failures, sep="\n")
    if options.out:
        options.out.write_text(json.dumps({"files": len(names), "outcomes": table, "failures": failures}, indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
