"""Damages every file of a checkpoint in turn: truncates it, flips a bit, or deletes it. Then opens the run again.

    python -m tests.drills.damage [--out=FILE.json]

The drill writes two checkpoints of a small state, at steps 1 and 2, and damages each file of the newer one in each way.
Two results are correct: the newer state, bit for bit (the file is not needed); or the older state, with a message that
names the damaged file. After damage to the manifest, the message may name a file that the manifest describes wrongly.
All other results count as lost. The exit status is 0 if none is lost.
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

from bt_jax.run_folder import manifest
from bt_jax.state import TrainState
from tests.support.damage import WAYS, equal, reopened, write_run


def outcome(folder: Path, states: list[TrainState], name: str) -> str:
    """The result of opening a run with a damaged file in its newer checkpoint: "right", "previous", or a failure."""
    older, newer = states
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            checkpoints = reopened(folder)
            step = checkpoints.latest()
            restored = checkpoints.restore(newer, step)
            checkpoints.close()
    except Exception as error:
        return f"failed: {type(error).__name__}"
    if equal(restored, newer):
        return "right"
    named = manifest.short(Path(name)) in output.getvalue() or "manifest.json" in output.getvalue()
    if name == "manifest.json":  # a flipped bit may change the entry of another file, and the message names that file
        named |= "checkpoint 2 is damaged" in output.getvalue()
    return "previous" if equal(restored, older) and named else "lost"


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
                result = outcome(copy, states, name)
                table[way.__name__][result] += 1
                if result not in ("right", "previous"):
                    failures.append(f"{way.__name__} {name}: {result}")
                shutil.rmtree(copy)
    outcomes = sorted({result for counts in table.values() for result in counts})
    print(f"{len(names)} files  " + "  ".join(f"{result:>10}" for result in outcomes))
    for way, counts in table.items():
        print(f"{way:9} " + "  ".join(f"{counts[result]:>10}" for result in outcomes))
    print(*failures, sep="\n")
    if options.out:
        options.out.write_text(json.dumps({"files": len(names), "outcomes": table, "failures": failures}, indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
