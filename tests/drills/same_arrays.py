"""Compares the first 100 steps of the quickstart with stored results, for changes that must not change a number.

    python -m tests.drills.same_arrays            # compares; exit status 1 if an array or a metric differs
    python -m tests.drills.same_arrays --write    # stores the results of this code

A result is a checksum of every array in the checkpoint, and every training metric. It holds for one processor and one
version of jaxlib: others add numbers in another order. There, the drill prints that it cannot compare.
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
    """The parts of the machine that determine the last digits of float32."""
    return {"jaxlib": jaxlib.version.__version__, "processor": comparison.processor(), "fusions": compilers.state()}


def arrays(folder: Path) -> dict[str, str]:
    """A checksum of every array of a checkpoint, by its part and path."""
    checksums = {}
    for part in ("encoder", "projector", "train"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(step_folders.read_part(folder / part)):
            content = np.ascontiguousarray(leaf).tobytes()
            checksums[part + jax.tree_util.keystr(path)] = hashlib.sha256(content).hexdigest()[:16]
    return checksums


def measure(workdir: Path) -> dict:
    """Trains the steps and returns the results to store."""
    disabled = {"evals.every_epochs": 0.0, "evals.final": False, "log.tensorboard": False}
    config = changed(quickstart.get_config(), **disabled, **{"stop_after_steps": STEPS, "log.every_steps": 10})
    pretrain.run(config, str(workdir))
    step = workdir / "checkpoints" / str(STEPS)
    return {"machine": machine(), "metrics": without_speeds(workdir), "arrays": arrays(step)}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.same_arrays", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="store the results of this code")
    options = parser.parse_args(arguments)
    if not options.write and (stored := json.loads(STORED.read_text()))["machine"] != machine():
        print(f"The stored results are for {stored['machine']}, not for {machine()}. Use --write to store new ones.")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder) / "run")
    if options.write:
        STORED.write_text(json.dumps(result, indent=1) + "\n")
        return 0
    different = [name for name, value in stored["arrays"].items() if result["arrays"].get(name) != value]
    different += [name for name in result["arrays"] if name not in stored["arrays"]]
    same_metrics = result["metrics"] == stored["metrics"]
    print(f"{len(result['arrays'])} arrays, {len(different)} differ {different[:5]}")
    print(f"The metrics {'are equal' if same_metrics else 'differ'}.")
    return int(bool(different) or not same_metrics)


if __name__ == "__main__":
    sys.exit(main())
