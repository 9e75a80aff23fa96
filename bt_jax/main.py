"""The program: `python -m bt_jax.main --config=RECIPE[:arguments] --workdir=RUN [--config.KEY=VALUE ...]`.

It trains or evaluates as the recipe describes and writes everything to the run folder. The same command resumes a run
from its newest checkpoint. RECIPE is a file, or the name of a recipe of the package. The docstring of a recipe has its
command, its hardware and its expected result.
"""

import importlib
import tempfile
import time
from functools import partial

from absl import flags

from bt_jax import messages, storage
from bt_jax.cli import config_program
from bt_jax.config import keys
from bt_jax.config.arguments import choose
from bt_jax.config.keys import TASKS
from bt_jax.messages import UserError, is_disk_full
from bt_jax.processes import coordination, exits, join, watchdog
from bt_jax.run_folder import opening
from bt_jax.selfcheck import comparison

USAGE = {
    "pretrain": """bt-jax pretrain --config=RECIPE[:ARGUMENTS] --workdir=RUN [--config.KEY=VALUE ...]

Trains an encoder on images without labels. The same command resumes the run from its newest checkpoint.
""",
    "evaluate": """bt-jax evaluate --config.encoder=RUN --workdir=OUT [--config.KEY=VALUE ...]

Evaluates an encoder on frozen features: kNN, a linear probe, and label-free metrics. Its recipe is evaluate;
transfer_voc07 is another.
""",
    "finetune": """bt-jax finetune --config.encoder=RUN --workdir=OUT [--config.KEY=VALUE ...]

Trains a classifier on an encoder, which stays frozen or is trained too. Its recipe is finetune; others are linear,
semisupervised and transfer. The same command resumes the run from its newest checkpoint.
""",
}
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Run folder, local or gs://BUCKET/FOLDER: made if absent, resumed if it holds the same run."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0; not needed on SLURM, TPU slices and Kubernetes."
)
PROCESSES = flags.DEFINE_integer(
    "processes", None, "Number of processes; 1: this one alone, without a search for SLURM or another cluster."
)
PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.")


def main(argv: list[str], task: str = "") -> None:
    """Runs config.task, which must equal `task` unless that is ""."""
    del argv
    started = time.monotonic()
    if WORKDIR.value is None:
        raise UserError("No --workdir is given", "Name the folder for the files of the run.")
    config = config_program.CONFIG.value
    if task and config.task != task:
        raise UserError(f"This recipe is for the task {config.task}, not {task}", f"Run bt-jax {config.task}.")
    keys.read(config)  # impossible values are reported before anything starts
    _compile_cache(config.compile_cache)
    join.start(COORDINATOR.value, PROCESSES.value, PROCESS.value, silent_seconds=config.watch.silent_seconds)
    watchdog.begin(stuck_seconds=config.watch.stuck_seconds, silent_seconds=config.watch.silent_seconds)
    try:
        with exits.failures_end_all():
            _run(config, started)
            coordination.gather(None, barrier="the end")  # all processes wait until process 0 has written the report
    finally:
        watchdog.end()


def _run(config, started: float) -> None:
    from bt_jax import sharding  # imported here: `jax_settings` must be the first that imports JAX

    name = choose("config.task", config.task, TASKS)
    opening.check_folder(WORKDIR.value, name)  # before a device is used: a run in the folder may occupy it
    sharding.all_devices()  # a UserError if there is none
    messages.say(f"starting {name}")  # before the slow imports
    task = importlib.import_module(f"bt_jax.tasks.{name}")
    if config.self_check:
        comparison.require(storage.user_cache() / "selfcheck")
    try:
        with storage.bucket_errors_as_user_errors():
            task.run(config, WORKDIR.value, started=started)
    except OSError as error:
        if not is_disk_full(error):
            raise
        places = filter(storage.is_full, (WORKDIR.value, tempfile.gettempdir(), storage.user_cache()))
        fix = "Free some space and run the same command again: it resumes from the newest intact checkpoint."
        where = error.filename or " and ".join(map(str, places)) or WORKDIR.value
        raise UserError(f"The disk is full while writing to {where}", fix) from error


def _compile_cache(folder: str) -> None:
    """Turns on JAX's cache of compiled programs, so that a restart does not wait for the compiler."""
    import jax

    folder = storage.absolute_text(storage.user_cache() / "xla" if folder == "auto" else folder)
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 5.0)


def run(argv: list[str] | None = None, task: str = "") -> None:
    """The entry point. Exit status 0, or that of a UserError after one line on stderr.

    Args:
      task: the only task to accept. With evaluate and finetune the recipe has a default.
    """
    default = task if task != "pretrain" else ""
    tasks = [task] if task else TASKS
    config_program.run(partial(main, task=task), USAGE.get(task, __doc__), argv, default=default, tasks=tasks)


if __name__ == "__main__":
    run()
