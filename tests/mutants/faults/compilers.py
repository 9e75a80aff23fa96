"""Faults of the protection from compilers that compute wrongly, and of the self-check."""

from ..fault import Fault

FLAG_SET = "test_the_flag_is_set_only_while_a_backend_starts"
USER_SETTING = "test_a_wrong_setting_of_the_user_is_not_changed_but_gives_a_warning"
RUNS_ONCE = "test_it_runs_once_for_the_same_conditions"
QUICK = "test_a_program_that_runs_once_compiles_with_less_optimisation_to_the_same_bits"
OUR_OWN = "test_functions_of_bt_jax_are_correct_after_jax_has_started"
STORED = "test_the_stored_numbers_equal_numpy"
WARNED_ONCE = "test_a_backend_that_has_started_already_gives_one_warning"
WRONG_NUMBER = "test_a_wrong_number_is_detected"

FAULTS = (
    Fault("compiler-safe", "SAFE", '"-reduce,-', '"-', (FLAG_SET, "test_this_machine_computes_correctly")),
    Fault("compiler-left", "_flag_in_environment", 'os.environ.pop("XLA_FLAGS", None)', "pass", (FLAG_SET,)),
    Fault("compiler-restored", "_flag_in_environment", 'os.environ["XLA_FLAGS"] = before', "pass", (FLAG_SET,)),
    Fault("compiler-user", "_flag_in_environment", "if user_flag() is None:", "if True:", (USER_SETTING,)),
    Fault("compiler-named", "_flag_in_environment", "_warn_of_flag(user_flag())", "pass", (USER_SETTING,)),
    Fault(
        "compiler-versions",
        "_wrap",
        "if not needs_flag():",
        "if False:",
        ("test_other_versions_start_without_the_flag",),
    ),
    Fault("compiler-eltwise", "is_safe", ', "+eltwise"', "", (USER_SETTING,)),
    Fault("compiler-default", "is_safe", '"-reduce" in changes and', "", (USER_SETTING,)),
    Fault("compiler-late", "install", "_late = True", "pass", (OUR_OWN,)),
    Fault(
        "compiler-option",
        "jit",
        "{FLAG: _LEFT_ON} if _late else {}",
        "{}",
        (OUR_OWN,),
    ),
    Fault("compiler-quick", "jit", "QUICK if runs_once else {}", "{}", (QUICK,)),
    Fault("compiler-warns", "install", "stacklevel=3", "DeprecationWarning, stacklevel=3", (WARNED_ONCE,)),
    Fault("selfcheck-tolerance", "Result.correct", "<=", ">=", ("test_this_machine_computes_correctly",)),
    Fault("selfcheck-nan", "_error", "return np.inf", "return 0.0", ("test_nan_is_detected",)),
    Fault("selfcheck-digest", "digest", "draw.choice([-1, 1], flat.size) *", "", (STORED,)),
    Fault("selfcheck-largest", "run_on", "error = max(", "error = min(", (WRONG_NUMBER,)),
    Fault("selfcheck-raises", "require", "raise failure(device, wrong)", "pass", (WRONG_NUMBER,)),
    Fault("selfcheck-record", "require", "_record(file, device)", "pass", (RUNS_ONCE,)),
    Fault("selfcheck-version", "_conditions", "compilers.jaxlib_version()", '""', (RUNS_ONCE,)),
    Fault(
        "selfcheck-asked",
        "_run",
        "if config.self_check:",
        "if True:",
        ("test_the_program_begins_with_the_self_check_unless_it_is_switched_off",),
    ),
    Fault(
        "selfcheck-skipped",
        "_run",
        "if config.self_check:",
        "if False:",
        ("test_the_program_begins_with_the_self_check_unless_it_is_switched_off",),
    ),
)
