"""Every file of a checkpoint truncated, with a flipped bit, or deleted in turn; then the run is opened again.

    python -m tests.drills.damage [--out=FILE.json]

Two checkpoints of a small state are written as a run writes them, at steps 1 and 2; each file of the newer one is
damaged in each way. What may come out: the newer state, bit for bit (the file is not needed), or the older one, with a
line that names the damaged file. Anything else is counted as lost. Exit status 0 only where nothing is.
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

import jax
import numpy as np

from bt_jax import models
from bt_jax.checkpoint import Checkpoints
from bt_jax.state import TrainState

BUILD = {"arch": "resnet18", "small_images": True, "width": 1 / 16, "channels": 3, "stem_padding": 1}


def random_state(step: int) -> TrainState:
    """Of the structure that a run has, small, its numbers drawn from the step."""
    generator = np.random.default_rng(step)

    def draw(shapes):
        return jax.tree.map(lambda s: jax.numpy.asarray(generator.standard_normal(s.shape, np.float32)), shapes)

    backbone = draw(jax.eval_shape(models.build(**BUILD).init, jax.random.key(0)))
    projector = {"fc0": {"kernel": np.zeros((32, 16), np.float32)}}
    probe = {"kernel": np.zeros((32, 4), np.float32), "bias": np.zeros(4, np.float32)}
    params = {"backbone": backbone["params"], "projector": draw(projector), "probe": draw(probe)}
    stats = {"backbone": backbone["batch_stats"], "projector": draw({"bn0": {"mean": np.zeros(16, np.float32)}})}
    momentum = jax.tree.map(lambda leaf: 2 * leaf, params)
    return TrainState(jax.numpy.int32(step), params, stats, {"trace": momentum}, jax.numpy.int32(0))


def equal(a: TrainState, b: TrainState) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def write_run(folder: Path) -> list[TrainState]:
    """Two checkpoints, of steps 1 and 2; returns their states."""
    states = [random_state(1), random_state(2)]
    checkpoints = Checkpoints(folder, model={"build": BUILD, "mean": [0.5], "std": [0.25]})
    for state in states:
        checkpoints.save(state)
    checkpoints.close()
    return states


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete(path: Path) -> None:
    path.unlink()


WAYS = (truncate, flip, delete)


def outcome(folder: Path, states: list[TrainState], name: str) -> str:
    """How a run with that damaged file in its newer checkpoint goes on: "right", "previous", or what went wrong."""
    older, newer = states
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            checkpoints = Checkpoints(folder, model={"build": BUILD, "mean": [0.5], "std": [0.25]})
            step = checkpoints.latest()
            found = checkpoints.restore(newer, step)
            checkpoints.close()
    except Exception as error:
        return f"failed: {type(error).__name__}"
    if equal(found, newer):
        return "right"
    named = name in said.getvalue() or "manifest.json" in said.getvalue()
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
