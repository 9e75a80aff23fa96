"""The first 100 steps of the quickstart, compared with what they gave before: for changes that should move no number.

    python -m tests.drills.same_arrays            # compares; exit status 1 where an array or a metric differs
    python -m tests.drills.same_arrays --write    # stores what this tree gives

Stored are a checksum of every array of the checkpoint and every metric of training, for one processor and one version
of jaxlib: on another, sums have another order, and the drill says that it can compare nothing.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import jax
import jaxlib
import numpy as np

from bt_jax import compilers
from bt_jax.configs import quickstart
from bt_jax.run_folder import step_folders
from bt_jax.selfcheck import comparison
from bt_jax.tasks import pretrain
from tests.support.paths import FIXTURES
from tests.support.runs import changed, without_speeds

STEPS = 100
STORED = FIXTURES / "quickstart_100_steps.json"


def machine() -> dict[str, str]:
    """What the last digits of float32 depend on."""
    return {"jaxlib": jaxlib.version.__version__, "processor": comparison.processor(), "fusions": compilers.state()}


def arrays(folder: Path) -> dict[str, str]:
    """A checksum of each array of a checkpoint, by its part and path."""
    found = {}
    for part in ("encoder", "projector", "train"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(step_folders.read_part(folder / part)):
            content = np.ascontiguousarray(leaf).tobytes()
            found[part + jax.tree_util.keystr(path)] = hashlib.sha256(content).hexdigest()[:16]
    return found


def measure(workdir: Path) -> dict:
    """Runs the steps and returns what is stored."""
    without = {"evals.every_epochs": 0.0, "evals.final": False, "log.tensorboard": False}
    config = changed(quickstart.get_config(), **without, **{"stop_after_steps": STEPS, "log.every_steps": 10})
    pretrain.run(config, str(workdir))
    step = workdir / "checkpoints" / str(STEPS)
    return {"machine": machine(), "metrics": without_speeds(workdir), "arrays": arrays(step)}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.same_arrays", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="store what this tree gives")
    options = parser.parse_args(arguments)
    if not options.write and (stored := json.loads(STORED.read_text()))["machine"] != machine():
        print(f"Nothing to compare with: stored for {stored['machine']}, this is {machine()}. See --write.")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder) / "run")
    if options.write:
        STORED.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    differing = [name for name, value in stored["arrays"].items() if found["arrays"].get(name) != value]
    differing += [name for name in found["arrays"] if name not in stored["arrays"]]
    print(f"{len(found['arrays'])} arrays, {len(differing)} differ {differing[:5]}")
    print(f"metrics {'equal' if found['metrics'] == stored['metrics'] else 'differ'}")
    return int(bool(differing) or found["metrics"] != stored["metrics"])


if __name__ == "__main__":
    sys.exit(main())
