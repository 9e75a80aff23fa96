"""The program: `python -m bt_jax.main --config=configs/FILE.py[:args] --workdir=DIR [--config.KEY=VALUE ...]`.

Trains or evaluates what the config describes and writes everything to the work folder. Given again, the same command
goes on from the newest checkpoint. A config file opens with its command, its hardware and the number it must reach.
"""

import importlib
import tempfile
import time

from absl import flags

from bt_jax import storage
from bt_jax.cli import config_program
from bt_jax.config.arguments import choose
from bt_jax.messages import UserError, is_disk_full
from bt_jax.processes import coordination, exits, join, watchdog
from bt_jax.run_folder import opening
from bt_jax.selfcheck import comparison

TASKS = ("pretrain", "evaluate", "finetune")  # modules of bt_jax.tasks
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Run folder, here or gs://BUCKET/FOLDER: made if absent, continued if it holds the same run."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where nothing tells it: SLURM, TPU slices and Kubernetes do."
)
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes; 1: this one alone, without looking.")
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")


def main(argv: list[str]) -> None:
    """Dispatches on config.task."""
    started = time.monotonic()
    if len(argv) > 1:
        raise UserError(f"Unknown argument {argv[1]!r}", "Options are written --name=value; see --help.")
    if WORKDIR.value is None:
        raise UserError("No --workdir is given", "Name the folder the run is written to.")
    config = config_program.CONFIG.value
    _compile_cache(config.compile_cache)
    join.start(COORDINATOR.value, PROCESSES.value, PROCESS.value, silent_seconds=config.watch.silent_seconds)
    watchdog.begin(stuck_seconds=config.watch.stuck_seconds, silent_seconds=config.watch.silent_seconds)
    try:
        with exits.leaving():
            _run(config, started)
            coordination.gather(None, what="the end")  # process 0 writes the report; nobody leaves before it is through
    finally:
        watchdog.end()


def _run(config, started: float) -> None:
    task = importlib.import_module(f"bt_jax.tasks.{choose('config.task', config.task, TASKS)}")
    opening.look(WORKDIR.value, config.task)  # before a device is touched, which the process in the folder may hold
    if config.self_check:
        comparison.require(storage.user_cache() / "selfcheck")
    try:
        with storage.reached():
            task.run(config, WORKDIR.value, started=started)
    except OSError as error:
        if not is_disk_full(error):
            raise
        places = filter(storage.is_full, (WORKDIR.value, tempfile.gettempdir(), storage.user_cache()))
        cure = "Free some space and give the same command again: it goes on from the newest whole checkpoint."
        where = error.filename or " and ".join(map(str, places)) or WORKDIR.value
        raise UserError(f"The disk is full while writing to {where}", cure) from error


def _compile_cache(folder: str) -> None:
    """Keeps compiled programs, so that a restart does not wait for the compiler again."""
    import jax

    if folder == "auto":
        folder = str(storage.user_cache() / "xla")
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 5.0)


def run(argv: list[str] | None = None) -> None:
    """Entry point: exit status 0, or 2 with one line on stderr for anything the user can mend; launch/README.md."""
    config_program.run(main, __doc__, argv)


if __name__ == "__main__":
    run()
