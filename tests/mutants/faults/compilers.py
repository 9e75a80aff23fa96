"""Faults of the guard against compilers that compute wrongly, and of the self-check."""

from ..fault import Fault

FLAG_THERE = "test_the_flag_is_there_while_a_backend_starts_and_not_after"
KEPT_AND_NAMED = "test_a_wrong_setting_of_the_user_is_kept_and_named"
MADE_ONCE = "test_it_is_made_once_for_the_same_conditions"
OUR_OWN = "test_our_own_functions_are_right_after_jax_has_started"
STORED = "test_the_stored_numbers_are_numpys"
WARNED_ONCE = "test_a_backend_that_runs_already_is_warned_about_once"
WRONG_NUMBER = "test_a_wrong_number_is_found"

FAULTS = (
    Fault("compiler-safe", "SAFE", '"-reduce,-', '"-', (FLAG_THERE, "test_this_machine_computes_rightly")),
    Fault("compiler-left", "_flag_in_environment", 'os.environ.pop("XLA_FLAGS", None)', "pass", (FLAG_THERE,)),
    Fault("compiler-restored", "_flag_in_environment", 'os.environ["XLA_FLAGS"] = before', "pass", (FLAG_THERE,)),
    Fault("compiler-user", "_flag_in_environment", "if user_flag() is None:", "if True:", (KEPT_AND_NAMED,)),
    Fault("compiler-named", "_flag_in_environment", "_name(user_flag())", "pass", (KEPT_AND_NAMED,)),
    Fault("compiler-versions", "_wrap", "if not needs_flag():", "if False:", ("test_other_versions_are_left_alone",)),
    Fault("compiler-eltwise", "is_safe", ', "+eltwise"', "", (KEPT_AND_NAMED,)),
    Fault("compiler-default", "is_safe", '"-reduce" in changes and', "", (KEPT_AND_NAMED,)),
    Fault("compiler-late", "install", "_late = True", "pass", (OUR_OWN,)),
    Fault(
        "compiler-option",
        "jit",
        'options["compiler_options"] = {FLAG: _LEFT_ON}',
        "pass",
        (OUR_OWN,),
    ),
    Fault("compiler-warns", "install", "stacklevel=3", "DeprecationWarning, stacklevel=3", (WARNED_ONCE,)),
    Fault("selfcheck-tolerance", "Result.right", "<=", ">=", ("test_this_machine_computes_rightly",)),
    Fault("selfcheck-nan", "_error", "return np.inf", "return 0.0", ("test_not_a_number_is_found",)),
    Fault("selfcheck-digest", "digest", "draw.choice([-1, 1], flat.size) *", "", (STORED,)),
    Fault("selfcheck-largest", "run_on", "error = max(", "error = min(", (WRONG_NUMBER,)),
    Fault("selfcheck-raises", "require", "raise failure(device, wrong)", "pass", (WRONG_NUMBER,)),
    Fault("selfcheck-remembers", "require", "_remember(file, device)", "pass", (MADE_ONCE,)),
    Fault("selfcheck-version", "_conditions", "compilers.jaxlib_version()", '""', (MADE_ONCE,)),
    Fault(
        "selfcheck-asked",
        "_run",
        "if config.self_check:",
        "if True:",
        ("test_the_program_checks_first_unless_asked_not_to",),
    ),
    Fault(
        "selfcheck-skipped",
        "_run",
        "if config.self_check:",
        "if False:",
        ("test_the_program_checks_first_unless_asked_not_to",),
    ),
)
