"""The program: `python -m bt_jax.main --config=RECIPE[:arguments] --workdir=RUN [--config.KEY=VALUE ...]`.

It trains or evaluates what the recipe describes and writes everything to the run folder. The same command resumes a
run from its newest checkpoint. RECIPE is a file, or the name of one that comes with the package. A recipe opens with
its command, its hardware and the number it must reach.
"""

import importlib
import tempfile
import time
from functools import partial

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


def main(argv: list[str], task: str = "") -> None:
    """Dispatches on config.task, which must be `task` if that is given."""
    started = time.monotonic()
    if len(argv) > 1:
        raise UserError(f"Unknown argument {argv[1]!r}", "Options are written --name=value; see --help.")
    if WORKDIR.value is None:
        raise UserError("No --workdir is given", "Name the folder the run is written to.")
    config = config_program.CONFIG.value
    if task and config.task != task:
        raise UserError(f"This recipe is for the task {config.task}, not {task}", f"Run bt-jax {config.task}.")
    _compile_cache(config.compile_cache)
    join.start(COORDINATOR.value, PROCESSES.value, PROCESS.value, silent_seconds=config.watch.silent_seconds)
    watchdog.begin(stuck_seconds=config.watch.stuck_seconds, silent_seconds=config.watch.silent_seconds)
    try:
        with exits.failures_end_all():
            _run(config, started)
            coordination.gather(
                None, barrier="the end"
            )  # process 0 writes the report; nobody leaves before it is through
    finally:
        watchdog.end()


def _run(config, started: float) -> None:
    task = importlib.import_module(f"bt_jax.tasks.{choose('config.task', config.task, TASKS)}")
    opening.check_folder(
        WORKDIR.value, config.task
    )  # before a device is touched, which the process in the folder may hold
    if config.self_check:
        comparison.require(storage.user_cache() / "selfcheck")
    try:
        with storage.bucket_errors_as_user_errors():
            task.run(config, WORKDIR.value, started=started)
    except OSError as error:
        if not is_disk_full(error):
            raise
        places = filter(storage.is_full, (WORKDIR.value, tempfile.gettempdir(), storage.user_cache()))
        fix = "Free some space and give the same command again: it goes on from the newest whole checkpoint."
        where = error.filename or " and ".join(map(str, places)) or WORKDIR.value
        raise UserError(f"The disk is full while writing to {where}", fix) from error


def _compile_cache(folder: str) -> None:
    """Keeps compiled programs, so that a restart does not wait for the compiler again."""
    import jax

    folder = storage.absolute_text(storage.user_cache() / "xla" if folder == "auto" else folder)
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 5.0)


def run(argv: list[str] | None = None, task: str = "") -> None:
    """Entry point: exit status 0, or 2 with one line on stderr for anything the user can fix; launch/README.md.

    Args:
      task: the only one to run; evaluate and finetune then have a recipe by default.
    """
    config_program.run(partial(main, task=task), __doc__, argv, default=task if task != "pretrain" else "")


if __name__ == "__main__":
    run()
