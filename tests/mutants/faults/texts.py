"""Faults of messages."""

from ..fault import Fault

FAULTS = (
    Fault(
        "text-eta",
        "Progress._seconds_left",
        "(self._total - step) * seconds",
        "self._total * seconds",
        ("test_the_time_to_go_shrinks",),
    ),
    Fault(
        "text-eta-pauses",
        "Progress._seconds_left",
        "/ steps + pauses",
        "/ steps",
        ("test_the_time_to_go_has_the_saves_and_evaluations",),
    ),
    Fault(
        "text-live-line-stays",
        "make_way",
        "_line.clear()",
        "pass",
        ("test_a_training_run_on_a_terminal",),
    ),
    Fault(
        "text-live-line-in-a-notebook",
        "_on_terminal",
        "or not sys.stdout.isatty()",
        "",
        ("test_a_notebook_has_no_bar",),
    ),
    Fault(
        "text-clock", "_clock", "hours, minutes = divmod(minutes, 60)", "hours = 0", ("test_the_time_to_go_shrinks",)
    ),
    Fault(
        "text-speed",
        "Progress.measure",
        "(step - self._step) * self._batch",
        "step * self._batch",
        ("test_speed_and_waiting_are_of_the_steps_since_the_last_line",),
    ),
    Fault(
        "text-waiting",
        "Progress.measure",
        "(waited - self._waited) / seconds",
        "waited / seconds",
        ("test_speed_and_waiting_are_of_the_steps_since_the_last_line",),
    ),
    Fault(
        "text-skip",
        "Progress.skip",
        "self._time, self._step = time.monotonic(), self._step if step is None else step",
        "pass",
        ("test_speed_and_waiting_are_of_the_steps_since_the_last_line",),
    ),
    Fault("text-help", "run", "{keys.describe()}", "", ("test_help_names_every_key",)),
    Fault(
        "text-help-task",
        "describe",
        "in TASKS.items()",
        "in list(TASKS.items())[:2]",
        ("test_help_names_every_key",),
    ),
    Fault("text-nearest", "suggestions", "close + [name", "[name", ("test_wrong_command_line",)),
    Fault(
        "text-rates",
        "_not_finite",
        "f'{name} {rate:.3g}' for name, rate in rates.items()",
        "'' for _ in rates",
        ("test_the_limit_of_steps_that_are_not_finite",),
    ),
    Fault(
        "text-one-line",
        "UserError.__init__",
        '" ".join((f"{cause}. {fix}" if fix else cause).split())',
        '(f"{cause}. {fix}" if fix else cause)',
        ("test_a_user_error_has_its_status_and_one_line",),
    ),
    Fault(
        "text-other-processes",
        "say",
        "if jax.process_index() == 0:",
        "if True:",
        ("test_only_the_first_process_prints",),
    ),
    Fault(
        "text-batch-warning",
        "check_rate",
        "not in (0, settings.batch_size)",
        "not in (0,)",
        ("test_batch_changed_behind_the_recipe_warns",),
    ),
    Fault(
        "text-warmup",
        "check_warmup",
        "warmup >= total",
        "warmup > total",
        ("test_a_warmup_that_the_run_does_not_outlast_warns",),
    ),
    Fault(
        "print-full-disk",
        "_Lasting._failed",
        "not is_disk_full(error)",
        "True",
        ("test_a_program_continues_and_reports_the_failure_once",),
    ),
    Fault(
        "print-flush",
        "_Lasting.end",
        "self._leave()",
        "pass",
        ("test_the_exit_status_with_a_closed_pipe",),
    ),
)
